#!/usr/bin/env python
"""Train a score network, or a classifier of noisy images.

    python scripts/train.py --config mnist32 --out out/mnist32

Everything goes into the output folder: checkpoint.pt (from which a second call goes on), loss.csv, loss.png, and at the
end the averaged weights as NAME.safetensors with their card NAME.json. Ctrl-C and SIGTERM save before they stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from fastscore.models.bundle import save_bundle
from fastscore.models.classifier import ClassifierConfig
from fastscore.training.classifier import ClassifierTrainer
from fastscore.training.config import CONFIGS, TrainingConfig
from fastscore.training.data import DATASETS
from fastscore.training.trainer import LOG_EVERY, Trainer, plot_log


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="mnist32", choices=sorted(CONFIGS), help="what to train (default: mnist32)")
    parser.add_argument("--out", type=Path, default=None, help="output folder (default: out/CONFIG)")
    parser.add_argument("--steps", type=int, help="updates, in place of those of the config")
    parser.add_argument("--batch", type=int, help="images in an update")
    parser.add_argument("--lr", type=float, help="learning rate after warm-up")
    parser.add_argument("--seed", type=int, help="of the weights, the noise and the order of the images")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="bfloat16: autocast, weights stay float32")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("--save-every", type=int, default=250, help="updates between two checkpoints (default: 250)")
    return parser.parse_args(arguments)


def configure(args: argparse.Namespace) -> TrainingConfig:
    """The named config with the changes asked for."""
    changes = {name: getattr(args, name) for name in ("steps", "batch", "lr", "seed", "precision")}
    return dataclasses.replace(CONFIGS[args.config], **{name: v for name, v in changes.items() if v is not None})


def card_of(trainer: Trainer, command: str) -> dict[str, Any]:
    """What the exported weights are, and how they were made."""
    config = trainer.config
    return {
        "name": config.name,
        "network": config.network.to_dict(),
        "sde": config.sde,
        "sde_options": dataclasses.asdict(trainer.sde),
        "convention": dataclasses.asdict(config.convention),
        "seed": config.seed,
        "command": command,
        "training": {k: v for k, v in config.to_dict().items() if k not in ("network", "convention", "sde_options")},
        "steps_made": trainer.step,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "torch": torch.__version__,
    }


def export(trainer: Trainer, path: Path, command: str, classes: tuple[str, ...]) -> None:
    """Write the averaged weights and their card, with the names of the classes if the network has some."""
    named = {} if trainer.labels is None else {"classes": classes}
    with trainer.ema.averaged(trainer.model) as model:
        save_bundle(path, model, card_of(trainer, command) | named)


def train(args: argparse.Namespace, command: str) -> int:
    """Train, or go on training; returns the exit code."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    config = configure(args)
    folder = args.out or Path("out") / config.name
    folder.mkdir(parents=True, exist_ok=True)
    data = DATASETS[config.dataset](folder / f"{config.dataset}.npz")
    labels = None if config.classes is None else data.labels
    kind = ClassifierTrainer if isinstance(config.network, ClassifierConfig) else Trainer
    trainer = kind(config, data.images, folder, labels=labels, device=args.device)
    if trainer.step:
        print(f"resuming {trainer.checkpoint} at update {trainer.step} of {config.steps}", flush=True)

    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stopped.append(signum))

    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 60  # seconds; a log file needs no animation
    with tqdm(total=config.steps, initial=trainer.step, unit="step", mininterval=interval) as bar:

        def report(step: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.4f}", lr=f"{trainer.learning_rate():.2g}", refresh=False)
            bar.update()

        finished = trainer.run(save_every=args.save_every, stop=lambda: bool(stopped), report=report)

    if trainer.step >= LOG_EVERY:
        plot_log(folder / "loss.csv", folder / "loss.png", f"{config.name}: {trainer.objective}")
    if not finished:
        print(f"stopped at update {trainer.step}; the same command goes on from there", flush=True)
        return 128 + stopped[0]
    path = folder / f"{config.name}.safetensors"
    export(trainer, path, command, data.classes)
    print(f"trained {config.steps} updates; weights in {path}", flush=True)
    return 0


def main() -> int:
    """Turn errors into one line and exit code 2."""
    try:
        return train(parse(), shlex.join(["python", *sys.argv]))
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

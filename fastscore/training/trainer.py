"""The training loop: Adam, warm-up, gradient clipping, weight average, checkpoints.

All randomness of an update is a function of (seed, step), and the order of the images of (seed, epoch): a run that was
killed goes on from its checkpoint to the same bits as one that was not.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscore.control.labels import check_labels
from fastscore.models.registry import create
from fastscore.training.config import TrainingConfig
from fastscore.training.data import to_signed_unit
from fastscore.training.ema import EMA
from fastscore.training.losses import denoising_loss, draw_times

LOG_EVERY = 50
_LOG_COLUMNS = ("step", "loss", "lr", "images_per_second")


class Trainer:
    """Trains `config.network` on `images`, uint8 (N, C, H, W), and keeps everything under `folder`.

    labels: int64 (N,), the classes of the images, for a network that has some: called as network(x, times, labels).

    Files: checkpoint.pt, loss.csv (mean loss of every 50 updates), loss.png. A checkpoint in `folder` is resumed; it
    must have been made with the same config, otherwise ValueError.
    """

    objective = "denoising score matching"

    def __init__(
        self,
        config: TrainingConfig,
        images: Tensor,
        folder: Path | str,
        *,
        labels: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < config.batch:
            raise ValueError(
                f"images must be uint8 (N, C, H, W) with N of at least the batch of {config.batch}, "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if (labels is None) != (config.classes is None):
            needed = "None for a network without classes" if config.classes is None else "given for its classes"
            raise ValueError(f"labels must be {needed}, got {type(labels).__name__}")
        if labels is not None:
            assert config.classes is not None
            if check_labels("Trainer", labels, config.classes).shape != images.shape[:1]:
                raise ValueError(f"labels must have shape ({len(images)},), like images, got {tuple(labels.shape)}")
        self.labels = labels
        self.config, self.folder, self.device = config, Path(folder), torch.device(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.images = to_signed_unit(images)
        self.sde = config.make_sde()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = create(config.network)
        self.format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(self.device).to(memory_format=self.format).train()
        self.ema = EMA(self.model, config.ema)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr)
        self.step = 0
        self.window: list[float] = []  # losses since the last line of loss.csv
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def run(
        self,
        *,
        save_every: int = 500,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[int, float], None] = lambda step, loss: None,
    ) -> bool:
        """Train to `config.steps`, or until `stop()` says so; either way the last state is saved. True if finished.

        report: called after every update with the number of updates made and the loss.
        """
        self._trim_log()
        last, images = time.perf_counter(), 0
        while self.step < self.config.steps and not stop():
            loss = self.update()
            images += self.config.batch
            report(self.step, loss)
            if self.step % LOG_EVERY == 0:
                now = time.perf_counter()
                self._log(images / (now - last))
                last, images = now, 0
            if self.step % save_every == 0:
                self.save()
        self.save()
        return self.step >= self.config.steps

    def update(self) -> float:
        """One update of the weights and of their average; returns the loss. FloatingPointError if it is not finite."""
        c = self.config
        rows = self._indices(self.step)
        batch = self.images[rows].to(self.device).contiguous(memory_format=self.format)
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else [self.device]):
            torch.manual_seed(_derived_seed(c.seed, "step", self.step))
            t = draw_times(c.batch, self.sde, eps=c.eps, stratified=c.stratified).to(self.device)
            noise = torch.randn(batch.shape).to(self.device).contiguous(memory_format=self.format)
            labels = None if self.labels is None else self.labels[rows]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=c.precision == "bfloat16"):
                loss = self._losses(batch, labels, t, noise).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, c.grad_clip)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise FloatingPointError(f"step {self.step}: the loss is {value}, its gradient norm {norm.item()}")
        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        self.window.append(value)
        return value

    def _losses(self, x0: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """Of every image of a batch; labels, on the CPU, are None for a network without classes."""
        c = self.config
        network = self.model if labels is None else self._conditioned(labels)
        return denoising_loss(
            network,
            self.sde,
            x0,
            t,
            noise,
            convention=c.convention,
            weighting=c.weighting,
            reduce_mean=c.reduce_mean,
        )

    def _conditioned(self, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The model for some labels, a share of which is hidden from it."""
        if self.config.label_dropout:
            assert self.config.classes is not None  # the config has seen to it
            labels = labels.masked_fill(torch.rand(len(labels)) < self.config.label_dropout, self.config.classes)
        labels = labels.to(self.device)
        return lambda x, times: self.model(x, times, labels)

    def learning_rate(self) -> float:
        """Of the next update."""
        c, n = self.config, self.step + 1
        rate = c.lr * min(1.0, n / max(c.warmup, 1))
        if c.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, n - c.warmup) / max(1, c.steps - c.warmup))))
        return rate

    def _indices(self, step: int) -> Tensor:
        """Rows of a step: consecutive pieces of one permutation an epoch; the incomplete last piece is left out."""
        per_epoch = len(self.images) // self.config.batch
        epoch, piece = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(_derived_seed(self.config.seed, "epoch", epoch))
        order = torch.randperm(len(self.images), generator=generator)
        return order[piece * self.config.batch : (piece + 1) * self.config.batch]

    def save(self) -> None:
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "window": self.window,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)  # a kill in the middle leaves the old one whole

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        saved, own = state["config"], self.config.to_dict()
        if changed := sorted(name for name in own.keys() | saved.keys() if saved.get(name) != own.get(name)):
            raise ValueError(
                f"{self.checkpoint} was made with other values of {', '.join(changed)}: "
                "use its config, or another output folder"
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.window = state["step"], state["window"]

    @property
    def _log_file(self) -> Path:
        return self.folder / "loss.csv"

    def _log(self, speed: float) -> None:
        row = (self.step, sum(self.window) / len(self.window), self.optimizer.param_groups[0]["lr"], speed)
        self.window.clear()
        with open(self._log_file, "a", newline="") as file:
            csv.writer(file).writerow(f"{value:.6g}" for value in row)

    def _trim_log(self) -> None:
        """Write the header, and drop the lines of updates that were lost with the last kill."""
        rows = [row for row in read_log(self._log_file) if row["step"] <= self.step]
        with open(self._log_file, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_LOG_COLUMNS)
            writer.writerows([f"{row[column]:.6g}" for column in _LOG_COLUMNS] for row in rows)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a loss.csv; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def plot_log(path: Path, image: Path, title: str) -> None:
    """Draw the loss curve of a loss.csv. Raises ModuleNotFoundError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_log(path)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.semilogy([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=0.8)
    axes.set(title=title, xlabel="update", ylabel="mean loss of 50 updates")
    axes.grid(alpha=0.3)
    figure.savefig(image, dpi=120)
    pyplot.close(figure)


def _derived_seed(*parts: object) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")

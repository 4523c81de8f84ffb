"""`fastscore import-checkpoint`: networks of other codebases as files of ours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from fastscore import models
from fastscore.cli._arguments import UsageError


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    importing = commands.add_parser(
        "import-checkpoint",
        help="turn a checkpoint of another codebase into a file for `fastscore sample --model`",
        description="Turn a checkpoint of score_sde, ncsn, ncsnv2, ddim, guided-diffusion or k-diffusion, or a folder "
        "of diffusers, into a file for `fastscore sample --model`: float32 weights, and what is known of the network.",
    )
    add = importing.add_argument
    add("checkpoint", type=Path, help="file or folder to read")
    add("out", type=Path, help="file to write: .safetensors, and a .json beside it for people")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default), or of the last step of training")
    add(
        "--config",
        metavar="NAME",
        help="what the checkpoint does not say of the network: a published configuration by name, or a .json file of "
        "options, alone or as network with sde, sde_options and convention",
    )
    importing.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.out.suffix != ".safetensors":
        raise UsageError(f"the output file must end in .safetensors, got {str(args.out)!r}")
    if args.out.is_dir() or args.out.resolve() == args.checkpoint.resolve():
        raise UsageError(
            f"the output file must be neither a directory nor the checkpoint itself, got {str(args.out)!r}"
        )
    if not args.out.parent.is_dir():
        raise UsageError(f"the directory of the output file does not exist: {str(args.out.parent)!r}")
    config = args.config
    if config is not None and config.endswith(".json"):
        try:
            config = json.loads(Path(config).read_text())
        except json.JSONDecodeError as error:
            raise UsageError(f"--config {args.config}: no JSON: {error}") from None
    try:
        model = models.load_checkpoint(args.checkpoint, weights=args.weights, config=config)
    except TypeError as error:
        raise UsageError(str(error)) from None
    if model.card is None:
        raise UsageError(
            f"{args.checkpoint} does not say the SDE of its network, and a file of ours has one: give --config a "
            "published name, or a .json file with network, sde, sde_options and convention"
        )
    models.save_bundle(args.out, model, model.card, dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {model.card['network']['architecture']}, {parameters:,} parameters, SDE {model.card['sde']}")

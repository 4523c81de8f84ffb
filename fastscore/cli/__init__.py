"""The console command `fastscore`: sample images, measure their likelihood, import models, say what is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import fastscore
from fastscore.cli import import_checkpoint, info, likelihood, sample, samplers
from fastscore.cli._arguments import Parser, UsageError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (default: those of the process) and return its exit code.

    Mistakes of the caller are one line on stderr and code 2; Ctrl-C is code 130 and leaves no file half written.
    """
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except KeyboardInterrupt:
        print("fastscore: interrupted", file=sys.stderr)
        return 130
    except _EXPECTED as error:
        print("fastscore: error:", " ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 2
    return 0


_EXPECTED = (
    UsageError,
    ValueError,
    OSError,
    ImportError,
    torch.OutOfMemoryError,
    fastscore.BackendUnavailableError,
    fastscore.NonFiniteError,
)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="fastscore", description="Sample from score-based and diffusion models with fused kernels.")
    parser.add_argument("--version", action="version", version=f"fastscore {fastscore.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in (sample, likelihood, import_checkpoint, samplers, info):
        command.add_to(commands)
    return parser

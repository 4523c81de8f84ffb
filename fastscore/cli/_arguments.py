"""What the commands share: how arguments are refused, and on what a network runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch

import fastscore
from fastscore import _backend, models

__all__ = ["Parser", "UsageError", "add_network", "network", "positive"]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class UsageError(Exception):
    """A mistake of the caller."""


def positive(text: str) -> int:
    """The type of arguments that count something."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_network(add: Callable[..., Any], batch: int) -> None:
    """Add the arguments that say which network runs, on how many images at once, and where."""
    add("--model", default="mnist32", help="name of a bundled model, or a file that import-checkpoint wrote")
    add("--seed", type=int, default=0, help="seed of the noise")
    add("--batch", type=positive, default=batch, help="images that go through the network at once")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    add("--backend", help="which kernels run: auto, reference, cpu, triton or cuda", default=argparse.SUPPRESS)
    add("--threads", type=positive, help="CPU threads (torch's choice unless given)", default=argparse.SUPPRESS)


@contextmanager
def network(args: argparse.Namespace) -> Iterator[tuple[models.ScoreNetwork, str]]:
    """A region in which the network and the backend that were asked for run: the network, and the backend's name."""
    if hasattr(args, "threads"):
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    with fastscore.backend(args.backend) if hasattr(args, "backend") else nullcontext():
        running = _backend.resolve(device)
        load = models.load_bundle if args.model.endswith(".safetensors") else models.load
        model = load(args.model).to(device)
        if isinstance(model, models.Classifier):
            raise UsageError(f"--model: {args.model} is a classifier, not a score network")
        yield model, running


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: {name!r} is no device; accepted are cpu, cuda, cuda:0, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device here")
    return device

"""Images of a class: by the network itself where it was trained with classes, else by the classifier of its name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from fastscore import models
from fastscore.cli._arguments import UsageError
from fastscore.control import ClassifierFreeGuidance, ClassifierGuidance
from fastscore.samplers import Hook

__all__ = ["add_class", "conditioned"]


def add_class(add: Callable[..., Any]) -> None:
    """Add the arguments that ask for a class."""
    add("--label", metavar="CLASS", help="draw images of this class, a name or a number", default=argparse.SUPPRESS)
    add("--guidance", type=float, help="how much the class counts: scale of the guidance by it", default=1.0)


def conditioned(args: argparse.Namespace, model: models.ScoreNetwork) -> tuple[Any, list[Hook]]:
    """The network to draw with and the hooks of the sampler, for the class that was asked for."""
    if not hasattr(args, "label"):
        return model, []
    device = next(model.parameters()).device
    names = _names(model)
    if names is not None:
        label = torch.tensor([_number(args.label, names)], device=device)
        return ClassifierFreeGuidance(model, label, len(names), scale=args.guidance), []
    name = f"{args.model}-classifier"
    if name not in models.names():
        raise UsageError(f"--label: {args.model} was trained without classes, and no classifier of them comes with it")
    classifier = models.load(name).to(device)
    names = _names(classifier) or []
    label = torch.tensor([_number(args.label, names)], device=device)
    return model, [ClassifierGuidance(classifier, label, len(names), scale=args.guidance)]


def _names(model: models.ScoreNetwork) -> list[str] | None:
    names: list[str] | None = (model.card or {}).get("classes")
    return names


def _number(label: str, names: list[str]) -> int:
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise UsageError(f"--label must be one of {', '.join(names)}, or a number below {len(names)}, got {label!r}")

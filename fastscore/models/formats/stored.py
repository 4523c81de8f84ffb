"""What was found in a checkpoint, before a network is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastscore.score import Convention


class Keys(dict[str, tuple[int, ...]]):
    """Shapes of a state dict; asking for a key that is not there is a ValueError that names it."""

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Keys:
        return cls({key: tuple(value.shape) for key, value in state.items()})

    def __missing__(self, key: str) -> tuple[int, ...]:
        raise ValueError(f"there is no {key}")

    def count(self, template: str) -> int:
        """How many numbers n = 0, 1 ... have a key that starts with the template, as in "down.{}."."""
        n = 0
        while any(key.startswith(template.format(n)) for key in self):
            n += 1
        return n


@dataclass(frozen=True)
class Layout:
    """What a file says of the options of its network.

    Attributes:
        architecture: a name in `fastscore.models.ARCHITECTURES`.
        options: those that the file determines.
        unsaid: those that it does not, and without which the network would compute something else; "a or b": one of
            the two.
        attended: levels of the U-Net with attention, where the option that says so is in pixels.
        sde, sde_options, convention: where the file says them.
    """

    architecture: str
    options: dict[str, Any]
    unsaid: tuple[str, ...] = ()
    attended: tuple[int, ...] | None = None
    sde: str | None = None
    sde_options: dict[str, Any] = field(default_factory=dict)
    convention: Convention | None = None


@dataclass(frozen=True)
class Stored:
    """The weights of a file.

    Attributes:
        format: what wrote it.
        raw: the state dict.
        averaged: exponential moving averages of the parameters: by name, or in the order of those that are trained.
        trains: it holds a training run, in which averages and raw weights differ; else one set of weights, `raw`.
        layout: what the file says beside the weights; None: only their keys and shapes tell.
    """

    format: str
    raw: dict[str, Tensor]
    averaged: Mapping[str, Tensor] | Sequence[Tensor] | None = None
    trains: bool = False
    layout: Layout | None = None

"""What all score networks share: options as plain values, the shape of their data, and what a trained one carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fastscore.score import Convention
from fastscore.sde import SDE

Config = TypeVar("Config", bound="NetworkConfig")


class NetworkConfig:
    """Base of the frozen dataclasses that hold the options of one architecture each.

    Attributes:
        architecture: the name of the architecture in `fastscore.models.ARCHITECTURES`.
        centered: the data lie in [-1, 1]; False: in [0, 1], and the network maps them to [-1, 1].
    """

    architecture: ClassVar[str]
    centered: bool = True

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """From a parsed JSON object. Raises ValueError on a name that is no option, or another architecture."""
        values = dict(values)
        if (named := values.pop("architecture", cls.architecture)) != cls.architecture:
            raise ValueError(f"architecture must be {cls.architecture!r} for {cls.__name__}, got {named!r}")
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"unknown option {', '.join(unknown)}; {cls.__name__} has {', '.join(names)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The options and the name of the architecture: what `fastscore.models.create` takes."""
        return {"architecture": self.architecture, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    def _make_tuples(self, *names: str) -> None:
        """JSON has lists only."""
        for name in names:
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def _check_choices(self, choices: Mapping[str, Sequence[str]]) -> None:
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_integers(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")

    def _check_levels(self, name: str, image_size: int, least: float = 1) -> None:
        """Option `name` holds a multiplier of the channels for every level of a U-Net, each half as large."""
        multipliers = getattr(self, name)
        if not multipliers or min(multipliers) < least:
            raise ValueError(f"{name} must hold one multiplier of at least {least} a level, got {multipliers}")
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"image_size must be divisible by {2 ** (len(multipliers) - 1)} for {len(multipliers)} levels, "
                f"got {image_size}"
            )

    def _check_dropout(self, value: float) -> None:
        if not 0 <= value < 1:
            raise ValueError(f"dropout must be in [0, 1), got {value}")


class ScoreNetwork(nn.Module):
    """Base of the networks: (B, *shape) data and (B,) time labels -> a prediction for each sample.

    What the labels and the output mean is set by training (`fastscore.score.Convention`).

    Attributes:
        config: the options that it was made from.
        sde, convention: what it was, or is to be, trained with; None where nobody said.
        card: how it was trained (`fastscore.models.load_bundle`).
    """

    config_type: ClassVar[type[NetworkConfig]]
    config: NetworkConfig
    sde: SDE | None = None
    convention: Convention | None = None
    card: dict[str, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample; (C, H, W) of images."""
        raise NotImplementedError

    def _check_input(self, x: Tensor, labels: Tensor) -> None:
        if x.shape[1:] != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels must have shape ({x.shape[0]},), one for every sample, got {tuple(labels.shape)}")

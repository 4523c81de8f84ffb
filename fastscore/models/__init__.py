"""Score networks, and the trained ones that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastscore.models.bundle import load_bundle, save_bundle
from fastscore.models.ncsnpp import NCSNpp, NCSNppConfig

__all__ = ["NCSNpp", "NCSNppConfig", "create", "load", "load_bundle", "names", "save_bundle"]

_WEIGHTS = Path(__file__).parent / "weights"
_BUNDLED = ("mnist32",)


def names() -> list[str]:
    """The trained models that `load` knows."""
    return list(_BUNDLED)


def load(name: str, *, device: torch.device | str = "cpu") -> NCSNpp:
    """A trained model that comes with the package, in eval mode, with float32 parameters.

    "mnist32": DDPM++ of 1.3 million parameters for MNIST digits padded to (1, 32, 32) in [-1, 1], VP SDE.

    It carries `.sde`, `.convention`, `.shape` (C, H, W), `.config` and `.card` (seed and command of the training).
    Raises ValueError for a name that is not in `names()`.
    """
    if name not in _BUNDLED:
        raise ValueError(f"model must be one of {', '.join(_BUNDLED)}, got {name!r}")
    return load_bundle(_WEIGHTS / f"{name}.safetensors", device=device)


def create(config: NCSNppConfig | Mapping[str, Any]) -> NCSNpp:
    """An untrained network from its options, an NCSNppConfig or a mapping of its fields (what JSON gives)."""
    if isinstance(config, Mapping):
        config = NCSNppConfig.from_dict(config)
    if not isinstance(config, NCSNppConfig):
        raise TypeError(f"config must be an NCSNppConfig or a mapping, got {type(config).__name__}")
    return NCSNpp(config)

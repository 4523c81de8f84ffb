"""Options of NCSN and NCSNv2 from their state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastscore.models.formats.score_sde import noise_levels
from fastscore.models.formats.stored import Keys, Layout

_UNSAID = ("image_size", "centered")


def ncsn(state: Mapping[str, Tensor]) -> Layout:
    """What the state dict says of an `NCSNConfig`. Raises ValueError where keys are missing that would tell."""
    keys = Keys.of(state)
    return Layout("ncsn", _sizes(keys) | {"num_scales": keys["normalizer.embed.weight"][0]}, _UNSAID)


def ncsnv2(state: Mapping[str, Tensor]) -> Layout:
    """What the state dict says of an `NCSNv2Config`. Raises ValueError where keys are missing that would tell."""
    return Layout("ncsnv2", _sizes(Keys.of(state)) | noise_levels(state), _UNSAID)


def _sizes(keys: Keys) -> dict[str, Any]:
    nf, num_channels = keys["begin_conv.weight"][:2]
    depth = next((depth for depth, level in ((6, "res31."), (5, "res5.")) if any(k.startswith(level) for k in keys)), 4)
    return {"num_channels": num_channels, "nf": nf, "depth": depth}

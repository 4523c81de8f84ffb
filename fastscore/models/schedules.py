"""The SDE of a network by name and options, as model cards have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastscore.schedule import DiscreteVPSDE
from fastscore.sde import SDE, VESDE, VPSDE, SubVPSDE

SDES: dict[str, type[SDE]] = {"VESDE": VESDE, "VPSDE": VPSDE, "SubVPSDE": SubVPSDE}
_SCHEDULES = ("linear", "scaled_linear", "cosine", "sqrt")


def make_sde(name: str, options: Mapping[str, Any]) -> SDE:
    """The SDE that a card means.

    Args:
        name: "VESDE", "VPSDE", "SubVPSDE" or "DiscreteVPSDE".
        options: what its constructor takes; for "DiscreteVPSDE" also `schedule`, the constructor ("linear",
            "scaled_linear", "cosine" or "sqrt").

    Raises:
        ValueError: an unknown name or schedule.
    """
    if name in SDES:
        return SDES[name](**options)
    if name != "DiscreteVPSDE":
        raise ValueError(f"sde must be one of {', '.join((*SDES, 'DiscreteVPSDE'))}, got {name!r}")
    options = dict(options)
    schedule = options.pop("schedule", None)
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}, got {schedule!r}")
    with torch.device("cpu"):  # coefficients belong to the host wherever the network is made
        sde: SDE = getattr(DiscreteVPSDE, schedule)(**options)
    return sde

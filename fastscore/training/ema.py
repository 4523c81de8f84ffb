"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """shadow <- d * shadow + (1 - d) * weight after every step, d = min(decay, (1 + n) / (10 + n)) at the n-th.

    The growing decay forgets the random start. Holds float32 copies (float64 of float64) of the trainable parameters.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay, self.updates = decay, 0
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.shadow = [p.detach().clone() for p in self._parameters(model)]

    @staticmethod
    def _parameters(model: nn.Module) -> list[Tensor]:
        return [p for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self._parameters(model)], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the weights of `model` by the averages."""
        torch._foreach_copy_(self._parameters(model), self.shadow)

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model` with the averages in it; its own weights come back at the end."""
        own = [p.detach().clone() for p in self._parameters(model)]
        self.copy_to(model)
        try:
            yield model
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters(model), own)

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "updates": self.updates, "shadow": dict(zip(self.names, self.shadow, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        shadow: dict[str, Tensor] = state["shadow"]
        if list(shadow) != self.names:
            raise ValueError(
                "the averages are of other parameters: "
                f"{len(shadow)} names were saved, this model has {len(self.names)}"
            )
        self.decay, self.updates = float(state["decay"]), int(state["updates"])
        with torch.no_grad():
            torch._foreach_copy_(self.shadow, list(shadow.values()))

"""Features of the time label: sinusoids of fixed or of random frequencies.

The phases are taken in float64 and rounded once at the end: they reach thousands of radians, where a float32 product
would already lose four digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def positional_embedding(
    labels: Tensor,
    features: int,
    dtype: torch.dtype = torch.float32,
    *,
    freq_shift: int = 1,
    flip_sin_to_cos: bool = False,
) -> Tensor:
    """[sin, cos] of labels * 10000^(-k / (features/2 - freq_shift)), k = 0 .. features/2 - 1 (Ho et al. 2020).

    labels: (B,), any real or integer dtype. flip_sin_to_cos: [cos, sin], which ADM has with a freq_shift of 0.
    Returns (B, features); an odd count is filled up with a zero column.
    """
    half = features // 2
    k = torch.arange(half, dtype=torch.float64, device=labels.device)
    phase = labels.double()[:, None] * torch.exp(k * (-math.log(10000.0) / max(half - freq_shift, 1)))
    waves = (phase.cos(), phase.sin()) if flip_sin_to_cos else (phase.sin(), phase.cos())
    return nn.functional.pad(torch.cat(waves, dim=1).to(dtype), (0, features % 2))


class GaussianFourierProjection(nn.Module):
    """[sin, cos] of 2 pi W v with fixed W ~ N(0, scale^2) (Tancik et al. 2020; Song et al. 2021, App. H).

    v: (B,) (the networks give log sigma). Returns (B, 2 * features). W stays float32 when the network is turned to half
    precision: rounded frequencies would be other features.
    """

    def __init__(self, features: int, scale: float = 16.0):
        super().__init__()
        self.W = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GaussianFourierProjection:
        exact = self.W.detach()
        super()._apply(fn, recurse)
        if self.W.dtype.itemsize < 4:
            self.W.data = exact.to(self.W.device)
        return self

    def forward(self, v: Tensor) -> Tensor:
        phase = v.double()[:, None] * self.W.double() * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=1).to(self.W.dtype)

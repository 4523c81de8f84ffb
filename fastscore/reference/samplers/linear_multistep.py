"""Adams-Bashforth methods for the probability-flow ODE in the noise level.

Source: Hairer, Nørsett and Wanner 1993, eq. III.1.2 to III.1.4, for ``dy/ds = eps``, y = x / alpha, s = sigma / alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import noise as noise_of

if TYPE_CHECKING:
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["lms_sampler"]

# Gauss-Legendre with two nodes on [-1, 1]: exact for the cubics of order 4.
_NODES = (-(3**-0.5), 3**-0.5)


@torch.no_grad()
def lms_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    convention: Convention,
    times: Tensor,
    *,
    order: int = 4,
    denoise: bool = True,
) -> Tensor:
    """From the state x of shape (B, ...) at the first of the `times`; other arguments as for `fastscore.LMSSampler`."""
    levels = (sde.sigma(times) / sde.alpha(times)).tolist() + [0.0] * denoise
    y, slopes = x / float(sde.alpha(times[0])), []
    for i in range(len(levels) - 1):
        t = float(times[i])
        slopes.append(noise_of(sde, model, float(sde.alpha(t)) * y, t, convention))
        used = range(max(0, i + 1 - order), i + 1)
        middle, half = (levels[i + 1] + levels[i]) / 2, (levels[i + 1] - levels[i]) / 2
        moved = y
        for j in used:
            for node in _NODES:
                weight = half
                for k in used:
                    if k != j:
                        weight *= (middle + half * node - levels[k]) / (levels[j] - levels[k])
                moved = moved + weight * slopes[j]
        y = moved
    return y if denoise else float(sde.alpha(times[-1])) * y

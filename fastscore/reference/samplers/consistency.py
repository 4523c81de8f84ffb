"""Multistep consistency sampling.

Source: Song et al., arXiv 2303.01469, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised

if TYPE_CHECKING:
    from fastscore.noise import Noise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["consistency_sampler"]


@torch.no_grad()
def consistency_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    times: Sequence[float],
    end: float,
    clip: float | None = None,
) -> Tensor:
    """From the state x of shape (B, ...) at ``times[0]``: the function is applied at each of the times.

    Args:
        end: the time to which the function leads.
        clip: as for `fastscore.ConsistencySampler`.
    """
    alpha_end, sigma_end = (float(c) for c in sde.marginal(end))
    for i, t in enumerate(times):
        if i > 0:
            alpha, sigma = (float(c) for c in sde.marginal(t))
            factor = alpha / alpha_end  # 1 for VE
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i)
            x = factor * x + (sigma**2 - factor**2 * sigma_end**2) ** 0.5 * z
        x = denoised(sde, model, x, t, convention)
        x = x if clip is None else x.clamp(-clip, clip)
    return x

"""Langevin dynamics, plain and annealed.

Source: Song and Ermon, arXiv 1907.05600, eq. 4 and algorithm 1; arXiv 2006.09011, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised
from fastscore.reference.samplers._network import score as score_of

if TYPE_CHECKING:
    from fastscore.noise import Noise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["annealed_langevin_sampler", "langevin_sampler"]


@torch.no_grad()
def langevin_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    step_size: float,
    steps: int,
    time: float,
) -> Tensor:
    """From the state x of shape (B, ...); other arguments as for `fastscore.LangevinSampler`."""
    for i in range(steps):
        z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i + 1)
        x = x + step_size * score_of(sde, model, x, time, convention) + (2 * step_size) ** 0.5 * z
    return x


@torch.no_grad()
def annealed_langevin_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    times: Tensor,
    *,
    step_size: float,
    inner_steps: int,
    denoise: bool = True,
) -> Tensor:
    """From the state x of shape (B, ...) through the levels at `times`, as for `fastscore.AnnealedLangevinSampler`."""
    draw, last = 0, times[-1]
    smallest = sde.sigma(last) / sde.alpha(last)
    y = x / float(sde.alpha(times[0]))
    for t in times:
        alpha = float(sde.alpha(t))
        step = step_size * float((sde.sigma(t) / alpha / smallest) ** 2)
        for _ in range(inner_steps):
            draw += 1
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=draw)
            # the density of y = x / alpha has the score alpha score(x)
            y = y + step * alpha * score_of(sde, model, alpha * y, float(t), convention) + (2 * step) ** 0.5 * z
    x = float(sde.alpha(last)) * y
    return denoised(sde, model, x, float(last), convention) if denoise else x

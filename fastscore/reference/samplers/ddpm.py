"""Ancestral sampling of DDPM.

Source: Ho et al., arXiv 2006.11239, eq. 6, 7 and 11; learned variances: Nichol and Dhariwal, arXiv 2102.09672, eq. 15.
"""

from __future__ import annotations

import math
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

__all__ = ["ddpm_sampler"]


@torch.no_grad()
def ddpm_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    times: Sequence[float],
    end: float | None = None,
    variance: str = "fixed_small",
    clip: float | None = None,
) -> Tensor:
    """From the state x of shape (B, ...) at ``times[0]``, with a network call at each of the times.

    Args:
        end: time of the result; None: the clean image, with alpha_bar 1.
        variance, clip: as for `fastscore.DDPMSampler`.
    """
    learned = []

    def mean_network(point: Tensor, label: Tensor) -> Tensor:
        h = model(point, label)
        if variance == "learned_range":
            h, v = h.chunk(2, 1)
            learned.append(v)
        return h

    for i, t in enumerate(times):
        last = i == len(times) - 1
        t_next = end if last else times[i + 1]
        alpha, sigma = (float(c) for c in sde.marginal(t))
        alpha_next, sigma_next = (1.0, 0.0) if t_next is None else (float(c) for c in sde.marginal(t_next))
        # for VP: alpha_bar = alpha^2, 1 - beta = alpha_bar / alpha_bar_next
        beta = sigma**2 - (alpha / alpha_next) ** 2 * sigma_next**2
        clean = denoised(sde, mean_network, x, t, convention)
        if clip is not None:
            clean = clean.clamp(-clip, clip)
        mean = alpha_next * beta / sigma**2 * clean + alpha / alpha_next * sigma_next**2 / sigma**2 * x
        x = mean
        if t_next is not None:
            smallest = beta * sigma_next**2 / sigma**2
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i + 1)
            if variance == "learned_range":
                v = (learned[-1] + 1) / 2
                log_variance = v * math.log(beta) + (1 - v) * math.log(smallest)
                x = mean + torch.exp(0.5 * log_variance) * z
            else:
                x = mean + (beta if variance == "fixed_large" else smallest) ** 0.5 * z
    return x

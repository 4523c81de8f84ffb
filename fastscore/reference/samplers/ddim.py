"""DDIM sampling and encoding.

Source: Song et al., arXiv 2010.02502, eq. 12 and 16, sections 4.3 and 5.
"""

from __future__ import annotations

import itertools
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

__all__ = ["ddim_inverse_sampler", "ddim_sampler"]


@torch.no_grad()
def ddim_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    times: Sequence[float],
    end: float | None = None,
    eta: float | str = 0.0,
    clipped_noise: bool = True,
    clip: float | None = None,
) -> Tensor:
    """From the state x of shape (B, ...) at ``times[0]``, with a network call at each of the times.

    Args:
        end: time of the result; None: the clean image, with alpha_bar 1.
        eta, clipped_noise, clip: as for `fastscore.DDIMSampler`.
    """
    for i, t in enumerate(times):
        t_next = end if i == len(times) - 1 else times[i + 1]
        alpha, sigma = (float(c) for c in sde.marginal(t))
        alpha_next, sigma_next = (1.0, 0.0) if t_next is None else (float(c) for c in sde.marginal(t_next))
        predicted = denoised(sde, model, x, t, convention)
        clean = predicted if clip is None else predicted.clamp(-clip, clip)
        epsilon = (x - alpha * (clean if clipped_noise else predicted)) / sigma
        # for VP: 1 - alpha_bar / alpha_bar_next
        beta = sigma**2 - (alpha / alpha_next) ** 2 * sigma_next**2
        std = (1.0 if eta == "sigma_hat" else float(eta)) * sigma_next / sigma * beta**0.5
        x = alpha_next * clean + max(sigma_next**2 - std**2, 0.0) ** 0.5 * epsilon
        if std > 0:
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i + 1)
            x = x + (beta**0.5 if eta == "sigma_hat" else std) * z
    return x


@torch.no_grad()
def ddim_inverse_sampler(
    sde: SDE, model: Model, x: Tensor, convention: Convention, *, times: Sequence[float], clip: float | None = None
) -> Tensor:
    """From images x of shape (B, ...) at ``times[0]`` to the latents at ``times[-1]``, the times rising."""
    for t, t_next in itertools.pairwise(times):
        alpha, sigma = (float(c) for c in sde.marginal(t))
        alpha_next, sigma_next = (float(c) for c in sde.marginal(t_next))
        clean = denoised(sde, model, x, t, convention)
        if clip is not None:
            clean = clean.clamp(-clip, clip)
        epsilon = (x - alpha * clean) / sigma
        x = alpha_next * clean + sigma_next * epsilon
    return x

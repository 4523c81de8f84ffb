"""The samplers of EDM, and ancestral sampling in the noise level.

Source: Karras et al., arXiv 2206.00364, algorithms 1 to 3, in ``y = x / alpha`` and ``s = sigma / alpha``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised

if TYPE_CHECKING:
    from fastscore.noise import Noise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["edm_sampler", "euler_ancestral_sampler"]


@torch.no_grad()
def edm_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    times: Tensor,
    *,
    order: int = 2,
    alpha: float = 1.0,
    stage_rho: float = 1.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    denoise: bool = True,
) -> Tensor:
    """From the state x of shape (B, ...) at the first of the `times`; other arguments as for `fastscore.EDMSampler`.

    Noise is drawn where gamma > 0 alone, and numbered from 1.
    """
    levels = _levels(sde, times, denoise)
    y = x / float(sde.alpha(times[0]))
    draw = 0
    for s, s_next in itertools.pairwise(levels):
        gamma = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1) if s_min <= s <= s_max else 0.0
        s_hat = s + gamma * s
        if gamma > 0:
            draw += 1
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=draw)
            y = y + math.sqrt(s_hat**2 - s**2) * s_noise * z
        d = (y - _denoised(sde, model, y, s_hat, convention)) / s_hat
        h = s_next - s_hat
        if stage_rho == math.inf:
            s_prime = math.exp((1 - alpha) * math.log(s_hat) + alpha * math.log(s_next)) if s_next > 0 else 0.0
        else:
            a, b = s_hat ** (1 / stage_rho), s_next ** (1 / stage_rho)
            s_prime = s_next if alpha == 1 else (a + alpha * (b - a)) ** stage_rho
        if order == 1 or s_prime == 0:
            y = y + h * d
        else:
            y_prime = y + (s_prime - s_hat) * d
            d_prime = (y_prime - _denoised(sde, model, y_prime, s_prime, convention)) / s_prime
            y = y + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return y * (1.0 if denoise else float(sde.alpha(times[-1])))


@torch.no_grad()
def euler_ancestral_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    times: Tensor,
    *,
    order: int = 1,
    eta: float = 1.0,
    s_noise: float = 1.0,
    denoise: bool = True,
) -> Tensor:
    """The same for `fastscore.EulerAncestralSampler`; noise is drawn where there is any, and numbered from 1."""
    levels = _levels(sde, times, denoise)
    y = x / float(sde.alpha(times[0]))
    draw = 0
    for s, s_next in itertools.pairwise(levels):
        up = min(s_next, eta * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
        down = math.sqrt(s_next**2 - up**2)
        d = (y - _denoised(sde, model, y, s, convention)) / s
        if order == 2 and down > 0:
            middle = math.exp((math.log(s) + math.log(down)) / 2)
            seen = y + (middle - s) * d
            d = (seen - _denoised(sde, model, seen, middle, convention)) / middle
        y = y + (down - s) * d
        if up * s_noise > 0:
            draw += 1
            y = y + up * s_noise * noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=draw)
    return y * (1.0 if denoise else float(sde.alpha(times[-1])))


def _levels(sde: SDE, times: Tensor, denoise: bool) -> list[float]:
    levels: list[float] = (sde.sigma(times) / sde.alpha(times)).tolist()
    return [*levels, 0.0] if denoise else levels


def _denoised(sde: SDE, model: Model, y: Tensor, level: float, convention: Convention) -> Tensor:
    t = float(sde.inverse_log_snr(torch.tensor(-2 * math.log(level), dtype=torch.float64)))
    return denoised(sde, model, float(sde.alpha(t)) * y, t, convention)

"""Predictor-corrector and Euler-Maruyama sampling.

Source: Song et al., arXiv 2011.13456: reverse-time SDE (eq. 6), probability flow (eq. 13), reverse diffusion
(appendix E), ancestral sampling (eq. 4, appendix F), correctors (algorithms 4 and 5).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import score as score_of

if TYPE_CHECKING:
    from fastscore.noise import Noise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["euler_maruyama_sampler", "pc_sampler"]


@torch.no_grad()
def pc_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    predictor: str,
    corrector: str,
    snr: float = 0.16,
    steps: int = 1000,
    corrector_steps: int = 1,
    norm: str = "batch",
    probability_flow: bool = False,
    eps: float = 1e-3,
    denoise: bool = True,
) -> Tensor:
    """Algorithm 1 from the state x of shape (B, ...) at t = 1; arguments as for `fastscore.PCSampler`."""
    draw = 0
    times = torch.linspace(1.0, eps, steps, dtype=torch.float64).tolist()
    for i, t in enumerate(times):
        for _ in range(corrector_steps if corrector != "none" else 0):
            draw += 1
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=draw)
            score = score_of(sde, model, x, t, convention)
            alpha = _step_alpha(sde, t, steps)
            if corrector == "langevin":
                step = (snr * _norm(z, norm) / _norm(score, norm)) ** 2 * 2 * alpha
                step = torch.where(_norm(score, norm) == 0, torch.zeros_like(step), step)
            else:
                step = torch.full((), (snr * float(sde.sigma(t))) ** 2 * 2 * alpha, dtype=x.dtype, device=x.device)
            x_mean = x + step * score
            x = x_mean + torch.sqrt(step * 2) * z
        if predictor == "none":
            continue
        draw += 1
        z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=draw)
        score = score_of(sde, model, x, t, convention)
        if predictor == "euler_maruyama":
            x_mean, g = _euler_step(sde, x, score, t, 1 / steps, probability_flow)
        elif predictor == "reverse_diffusion":
            f, g = (float(c) for c in sde.chain_step(t, steps))
            x_mean = x - f * x + g**2 * score * (0.5 if probability_flow else 1.0)
            g = 0.0 if probability_flow else g
        else:
            x_mean, g = _ancestral_step(sde, x, score, t, times[i + 1] if i + 1 < steps else 0.0, steps)
        x = x_mean if denoise and i == steps - 1 else x_mean + g * z
    return x


@torch.no_grad()
def euler_maruyama_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    steps: int = 1000,
    probability_flow: bool = False,
    eps: float = 1e-3,
    denoise: bool = True,
) -> Tensor:
    """Euler-Maruyama on the true grid; arguments as for `fastscore.EulerMaruyamaSampler`."""
    times = torch.linspace(1.0, eps, steps + 1, dtype=torch.float64).tolist()
    for i, (t, t_next) in enumerate(itertools.pairwise(times)):
        z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i + 1)
        score = score_of(sde, model, x, t, convention)
        x_mean, g = _euler_step(sde, x, score, t, t - t_next, probability_flow)
        x = x_mean if denoise and i == steps - 1 else x_mean + g * z
    return x


def _euler_step(sde: SDE, x: Tensor, score: Tensor, t: float, h: float, probability_flow: bool) -> tuple[Tensor, float]:
    """Mean and noise scale of a step of length h of eq. 6, or of eq. 13."""
    g = float(sde.diffusion(t))
    drift = float(sde.drift_coefficient(t)) * x - g**2 * score * (0.5 if probability_flow else 1.0)
    return x - drift * h, 0.0 if probability_flow else g * h**0.5


def _ancestral_step(sde: SDE, x: Tensor, score: Tensor, t: float, t_next: float, n: int) -> tuple[Tensor, float]:
    name = type(sde).__name__
    if name == "VPSDE":
        f, g = (float(c) for c in sde.chain_step(t, n))
        return (x + g**2 * score) / (1 + f), g  # 1 + f = sqrt(1 - beta_i), g = sqrt(beta_i)
    if name == "VESDE":
        added = float(sde.chain_step(t, n)[1]) ** 2
        sigma = float(sde.chain_marginal(t, n)[1])
        return x + added * score, (max(sigma**2 - added, 0.0) * added / sigma**2) ** 0.5
    (alpha, sigma), (alpha_next, sigma_next) = ([float(c) for c in sde.marginal(u)] for u in (t, t_next))
    ratio = alpha / alpha_next
    added = sigma**2 - ratio**2 * sigma_next**2
    clean = (x + sigma**2 * score) / alpha
    mean = ratio * sigma_next**2 / sigma**2 * x + alpha_next * added / sigma**2 * clean
    return mean, (sigma_next**2 * added / sigma**2) ** 0.5


def _step_alpha(sde: SDE, t: float, n: int) -> float:
    name = type(sde).__name__
    if name == "VPSDE":
        return (1 + float(sde.chain_step(t, n)[0])) ** 2  # 1 - beta_i
    return float(torch.exp(2 * sde.drift_coefficient(t) / n))  # exp(-beta(t) / n) for sub-VP, 1 for VE


def _norm(x: Tensor, norm: str) -> Tensor:
    """L2 norm of each sample, or its mean over the batch; shaped to broadcast against x."""
    norms = x.reshape(x.shape[0], -1).norm(dim=1)
    return norms.reshape(-1, *[1] * (x.ndim - 1)) if norm == "sample" else norms.mean()

"""SDE-DPM-Solver and SDE-DPM-Solver++.

Source: Lu et al., arXiv 2211.01095, section 6 and appendix, with the noise rate eta of k-diffusion:
``dx = (f x - (1 + eta) g^2 score / 2) dt + sqrt(eta) g dw`` is solved over a step in lambda = log(alpha / sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised
from fastscore.reference.samplers._network import noise as noise_of

if TYPE_CHECKING:
    from fastscore.noise import Noise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["sde_dpm_solver_2s_sampler", "sde_dpm_solver_sampler"]


@torch.no_grad()
def sde_dpm_solver_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    times: Tensor,
    *,
    order: int = 2,
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    eta: float = 1.0,
    s_noise: float = 1.0,
    lower_order_final: bool = True,
    denoise: bool = True,
) -> Tensor:
    """From the state x of shape (B, ...) at the first of the `times`; others as for `fastscore.SDEDPMSolverSampler`.

    Noise is drawn in every step that has some, and numbered by the step, from 1.
    """
    steps = len(times) - 1 + denoise
    predictions: list[Tensor] = []
    lambdas = (sde.log_snr(times) / 2).tolist()
    for i in range(steps):
        t = float(times[i])
        if denoise and i == steps - 1:
            return denoised(sde, model, x, t, convention)
        predict = denoised if algorithm == "dpmsolver++" else noise_of
        predictions.append(predict(sde, model, x, t, convention))
        now = min(order, i + 1)
        if lower_order_final and steps < 15:
            now = min(now, steps - i)
        m0 = predictions[i]
        h = lambdas[i + 1] - lambdas[i]
        (alpha, sigma), (alpha_t, sigma_t) = ([float(c) for c in sde.marginal(times[k])] for k in (i, i + 1))
        if algorithm == "dpmsolver++":
            big_h = (1 + eta) * h
            first = alpha_t * (1 - math.exp(-big_h))
            second = alpha_t * ((math.exp(-big_h) - 1) / big_h + 1)
            third = alpha_t * (2 - 2 * big_h + big_h**2 - 2 * math.exp(-big_h)) / big_h**2 / 2
            spread = sigma_t * math.sqrt(1 - math.exp(-2 * eta * h))
            x = sigma_t / sigma * math.exp(-eta * h) * x + first * m0
        else:
            first = -(1 + eta) * sigma_t * (math.exp(h) - 1)
            second = -(1 + eta) * sigma_t * ((math.exp(h) - 1) / h - 1)
            third = -(1 + eta) * sigma_t * (2 * math.exp(h) - 2 - 2 * h - h**2) / h**2 / 2
            spread = sigma_t * math.sqrt(eta) * math.sqrt(math.exp(2 * h) - 1)
            x = alpha_t / alpha * x + first * m0
        if now == 2:
            slope = (m0 - predictions[i - 1]) * h / (lambdas[i] - lambdas[i - 1])
            x = x + (first / 2 if solver_type == "midpoint" else second) * slope
        if now == 3:
            r0, r1 = (lambdas[i] - lambdas[i - 1]) / h, (lambdas[i - 1] - lambdas[i - 2]) / h
            d0 = (m0 - predictions[i - 1]) / r0
            d1 = (predictions[i - 1] - predictions[i - 2]) / r1
            slope = d0 + r0 / (r0 + r1) * (d0 - d1)
            half_curvature = (d0 - d1) / (r0 + r1)  # published: in place of the second derivative
            x = x + second * slope
            x = x + third * half_curvature * (2 if solver_type == "taylor" else 1)
        if spread * s_noise > 0:
            z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=i + 1)
            x = x + s_noise * spread * z
    return x


@torch.no_grad()
def sde_dpm_solver_2s_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    times: Tensor,
    *,
    stage_noise: str = "path",
    r: float = 0.5,
    eta: float = 1.0,
    s_noise: float = 1.0,
    denoise: bool = True,
) -> Tensor:
    """The same for `fastscore.SDEDPMSolver2SSampler`.

    In step i, from 0, the middle point has draw 2 i + 1 and the end draw 2 i + 2.
    """
    levels = (sde.sigma(times) / sde.alpha(times)).tolist()
    y = x / float(sde.alpha(times[0]))

    def clean(y: Tensor, level: float) -> Tensor:
        t = float(sde.inverse_log_snr(torch.tensor(-2 * math.log(level), dtype=torch.float64)))
        return denoised(sde, model, float(sde.alpha(t)) * y, t, convention)

    def ancestral(s: float, s_next: float) -> tuple[float, float]:
        up = eta * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2)
        return math.sqrt(s_next**2 - up**2), up

    def drawn(number: int, scale: float) -> Tensor | float:
        if scale == 0:
            return 0.0
        return scale * noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=number)

    for i in range(len(levels) - 1):
        s, s_next = levels[i], levels[i + 1]
        lam = -math.log(s)
        first = clean(y, s)
        down, up = ancestral(s, s_next)
        added, left = 0.0, 0.0
        if stage_noise != "none":
            lam_middle = lam + r * (-math.log(s_next) - lam)
            to, added = ancestral(s, math.exp(-lam_middle))
            shift = drawn(2 * i + 1, s_noise * added)
            u = to / s * y + (1 - to / s) * first + shift
        else:
            lam_middle = lam + r * (-math.log(down) - lam)
            u = math.exp(lam - lam_middle) * y + (1 - math.exp(lam - lam_middle)) * first
        second = clean(u, math.exp(-lam_middle))
        mixed = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * second
        y = down / s * y + (1 - down / s) * mixed
        if stage_noise == "path":
            left = ancestral(math.exp(-lam_middle), s_next)[0] / math.exp(-lam_middle)
            y = y + left * shift
        y = y + drawn(2 * i + 2, s_noise * math.sqrt(up**2 - (left * added) ** 2))
    return clean(y, levels[-1]) if denoise else float(sde.alpha(times[-1])) * y

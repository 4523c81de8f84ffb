"""Adaptive samplers: one sample after the other, every decision on the host.

Source: Dormand and Prince 1980, and Hairer, Norsett and Wanner, Solving ODEs I, II.4 (RK45); Lu et al., arXiv
2206.00927, appendix C (DPM-Solver-12 and -23); Jolicoeur-Martineau et al., arXiv 2105.14080, algorithm 1 (the SDE).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised, noise, score

if TYPE_CHECKING:
    from fastscore.noise import PhiloxNoise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]
    Counts = list[tuple[int, int]]

__all__ = ["adaptive_sde_sampler", "dpm_solver_adaptive", "rk45_sampler"]


@torch.no_grad()
def rk45_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    convention: Convention,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    norm: str = "sample",
    eps: float = 1e-3,
    denoise: bool = False,
) -> tuple[Tensor, Counts]:
    """From the state x (B, ...) at t = 1, as `fastscore.RK45Sampler`; also (accepted, rejected) of every sample."""

    def slope(x: Tensor, t: float) -> Tensor:
        s = score(sde, model, x, t, convention)
        return float(sde.drift_coefficient(t)) * x - 0.5 * float(sde.diffusion(t)) ** 2 * s

    def run(x: Tensor) -> tuple[Tensor, int, int]:
        t, k1 = 1.0, slope(x, 1.0)
        h = _first_step(slope, x, k1, eps, rtol, atol)
        accepted, rejected, after_rejection, last_error = 0, 0, False, 1e-4
        while t > eps:
            t_next = max(t - h, eps)
            h = t - t_next
            k2 = slope(x - h * (1 / 5 * k1), t - h / 5)
            k3 = slope(x - h * (3 / 40 * k1 + 9 / 40 * k2), t - 3 / 10 * h)
            k4 = slope(x - h * (44 / 45 * k1 - 56 / 15 * k2 + 32 / 9 * k3), t - 4 / 5 * h)
            k5 = slope(
                x - h * (19372 / 6561 * k1 - 25360 / 2187 * k2 + 64448 / 6561 * k3 - 212 / 729 * k4), t - 8 / 9 * h
            )
            k6 = slope(
                x - h * (9017 / 3168 * k1 - 355 / 33 * k2 + 46732 / 5247 * k3 + 49 / 176 * k4 - 5103 / 18656 * k5),
                t_next,
            )
            fifth = 35 / 384 * k1 + 500 / 1113 * k3 + 125 / 192 * k4 - 2187 / 6784 * k5 + 11 / 84 * k6
            new = x - h * fifth
            k7 = slope(new, t_next)
            fourth = (
                5179 / 57600 * k1 + 7571 / 16695 * k3 + 393 / 640 * k4 - 92097 / 339200 * k5 + 187 / 2100 * k6
                + 1 / 40 * k7
            )  # fmt: skip
            error = _rms(h * (fifth - fourth) / (atol + rtol * torch.maximum(x.abs(), new.abs())))
            if norm == "batch":
                factor = 0.9 * error**-0.2 if error > 0 else math.inf
            else:
                factor = 0.9 * error**-0.17 if error > 0 else math.inf
                factor *= last_error**0.04 if error < 1 else 1.0
            if error < 1:
                t, x, k1 = t_next, new, k7
                factor = min(1.0 if after_rejection else 10.0, factor)
                last_error = max(error, 1e-4)
                accepted += 1
            else:
                rejected += 1
            after_rejection = error >= 1
            h *= max(0.2, factor)
        return denoised(sde, model, x, eps, convention) if denoise else x, accepted, rejected

    return _each(run, x, together=norm == "batch")


@torch.no_grad()
def dpm_solver_adaptive(
    sde: SDE,
    model: Model,
    x: Tensor,
    convention: Convention,
    *,
    order: int = 3,
    algorithm: str = "dpmsolver",
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    safety: float = 0.9,
    norm: str = "sample",
    t_err: float = 1e-5,
    eps: float = 1e-3,
    denoise: bool = False,
) -> tuple[Tensor, Counts]:
    """From the state x (B, ...) at t = 1, as `fastscore.DPMSolverAdaptive` with its own controller."""
    end = 0.5 * float(sde.log_snr(eps))
    solve = {
        ("dpmsolver", 2): _dpm_solver_12,
        ("dpmsolver", 3): _dpm_solver_23,
        ("dpmsolver++", 2): _dpm_solver_pp_12,
        ("dpmsolver++", 3): _dpm_solver_pp_23,
    }[algorithm, order]

    def run(x: Tensor) -> tuple[Tensor, int, int]:
        t, h, accepted, rejected = 1.0, h_init, 0, 0
        previous = x
        while abs(t - eps) > t_err:
            begin = 0.5 * float(sde.log_snr(t))
            h = min(h, end - begin)
            t_next = float(sde.inverse_log_snr(2 * (begin + h))) if h < end - begin else eps
            low, high = solve(sde, model, convention, x, t, begin, h)
            delta = torch.maximum(torch.full_like(x, atol), rtol * torch.maximum(low.abs(), previous.abs()))
            flat = ((high - low) / delta).flatten(1)
            error = float(flat.square().mean(1).sqrt().max()) if norm == "max" else _rms(flat)
            if error <= 1:
                t, x, previous = t_next, high, low
                accepted += 1
            else:
                rejected += 1
            h = safety * h * error ** (-1 / order) if error > 0 else math.inf
        return denoised(sde, model, x, eps, convention) if denoise else x, accepted, rejected

    return _each(run, x, together=norm != "sample")


@torch.no_grad()
def adaptive_sde_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: PhiloxNoise,
    convention: Convention,
    *,
    rtol: float = 0.02,
    atol: float = 0.0078,
    h_init: float = 0.01,
    safety: float = 0.9,
    exponent: float = 0.9,
    eps: float = 1e-3,
    denoise: bool = True,
) -> tuple[Tensor, Counts]:
    """From the state x (B, ...) at t = 1, as `fastscore.AdaptiveSDESampler` with steps per sample."""

    def drift(x: Tensor, t: float) -> Tensor:
        s = score(sde, model, x, t, convention)
        return float(sde.drift_coefficient(t)) * x - float(sde.diffusion(t)) ** 2 * s

    def run(x: Tensor, row: int) -> tuple[Tensor, int, int]:
        own = noise.select([row])
        t, h, accepted, rejected = 1.0, h_init, 0, 0
        previous = x
        while t > eps:
            h = min(h, t - eps)
            t_next = eps if h == t - eps else t - h
            z = own.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=accepted + rejected + 1)
            k1 = -h * drift(x, t) + float(sde.diffusion(t)) * math.sqrt(h) * z
            k2 = -h * drift(x + k1, t_next) + float(sde.diffusion(t_next)) * math.sqrt(h) * z
            delta = torch.maximum(torch.full_like(x, atol), rtol * torch.maximum(previous.abs(), (x + k1).abs()))
            error = _rms((k2 - k1) / 2 / delta)
            if error <= 1:
                previous = x + k1
                x = x + (k1 + k2) / 2
                t = t_next
                accepted += 1
            else:
                rejected += 1
            h = safety * h * error**-exponent if error > 0 else math.inf
        if denoise:
            x = x + float(sde.sigma(eps)) ** 2 * score(sde, model, x, eps, convention)
        return x, accepted, rejected

    results = [run(x[row : row + 1], row) for row in range(len(x))]
    return torch.cat([result for result, _, _ in results]), [(a, r) for _, a, r in results]


def _each(run: Callable[[Tensor], tuple[Tensor, int, int]], x: Tensor, together: bool) -> tuple[Tensor, Counts]:
    if together:
        result, accepted, rejected = run(x)
        return result, [(accepted, rejected)] * len(x)
    results = [run(x[row : row + 1]) for row in range(len(x))]
    return torch.cat([result for result, _, _ in results]), [(a, r) for _, a, r in results]


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _first_step(
    slope: Callable[[Tensor, float], Tensor], x: Tensor, k1: Tensor, eps: float, rtol: float, atol: float
) -> float:
    """The starting step of Hairer, Norsett and Wanner, Solving ODEs I, II.4, for a pair of order 5(4)."""
    scale = atol + rtol * x.abs()
    d0, d1 = _rms(x / scale), _rms(k1 / scale)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    h0 = min(h0, 1 - eps)
    d2 = _rms((slope(x - h0 * k1, 1 - h0) - k1) / scale) / h0
    h1 = max(1e-6, 1e-3 * h0) if d1 <= 1e-15 and d2 <= 1e-15 else (0.01 / max(d1, d2)) ** 0.2
    return min(100 * h0, h1, 1 - eps)


def _node(sde: SDE, log_ratio: float) -> tuple[float, float, float]:
    """Time, alpha and sigma where lambda = log(alpha / sigma) has a value."""
    t = float(sde.inverse_log_snr(2 * log_ratio))
    alpha, sigma = (float(value) for value in sde.marginal(t))
    return t, alpha, sigma


def _dpm_solver_12(
    sde: SDE, model: Model, convention: Convention, x: Tensor, t: float, begin: float, h: float
) -> tuple[Tensor, Tensor]:
    alpha = float(sde.alpha(t))
    s1, alpha_1, sigma_1 = _node(sde, begin + h / 2)
    _, alpha_t, sigma_t = _node(sde, begin + h)
    e0 = noise(sde, model, x, t, convention)
    low = alpha_t / alpha * x - sigma_t * math.expm1(h) * e0
    e1 = noise(sde, model, alpha_1 / alpha * x - sigma_1 * math.expm1(h / 2) * e0, s1, convention)
    return low, alpha_t / alpha * x - sigma_t * math.expm1(h) * e1


def _dpm_solver_23(
    sde: SDE, model: Model, convention: Convention, x: Tensor, t: float, begin: float, h: float
) -> tuple[Tensor, Tensor]:
    r1, r2 = 1 / 3, 2 / 3
    alpha = float(sde.alpha(t))
    s1, alpha_1, sigma_1 = _node(sde, begin + r1 * h)
    s2, alpha_2, sigma_2 = _node(sde, begin + r2 * h)
    _, alpha_t, sigma_t = _node(sde, begin + h)
    e0 = noise(sde, model, x, t, convention)
    e1 = noise(sde, model, alpha_1 / alpha * x - sigma_1 * math.expm1(r1 * h) * e0, s1, convention)
    d1 = e1 - e0
    low = alpha_t / alpha * x - sigma_t * math.expm1(h) * e0 - sigma_t / (2 * r1) * math.expm1(h) * d1
    point = alpha_2 / alpha * x - sigma_2 * math.expm1(r2 * h) * e0
    point = point - sigma_2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = noise(sde, model, point, s2, convention) - e0
    high = alpha_t / alpha * x - sigma_t * math.expm1(h) * e0 - sigma_t / r2 * (math.expm1(h) / h - 1) * d2
    return low, high


def _dpm_solver_pp_12(
    sde: SDE, model: Model, convention: Convention, x: Tensor, t: float, begin: float, h: float
) -> tuple[Tensor, Tensor]:
    sigma = float(sde.sigma(t))
    s1, alpha_1, sigma_1 = _node(sde, begin + h / 2)
    _, alpha_t, sigma_t = _node(sde, begin + h)
    x0 = denoised(sde, model, x, t, convention)
    low = sigma_t / sigma * x - alpha_t * math.expm1(-h) * x0
    x1 = denoised(sde, model, sigma_1 / sigma * x - alpha_1 * math.expm1(-h / 2) * x0, s1, convention)
    return low, sigma_t / sigma * x - alpha_t * math.expm1(-h) * x1


def _dpm_solver_pp_23(
    sde: SDE, model: Model, convention: Convention, x: Tensor, t: float, begin: float, h: float
) -> tuple[Tensor, Tensor]:
    r1, r2 = 1 / 3, 2 / 3
    sigma = float(sde.sigma(t))
    s1, alpha_1, sigma_1 = _node(sde, begin + r1 * h)
    s2, alpha_2, sigma_2 = _node(sde, begin + r2 * h)
    _, alpha_t, sigma_t = _node(sde, begin + h)
    x0 = denoised(sde, model, x, t, convention)
    x1 = denoised(sde, model, sigma_1 / sigma * x - alpha_1 * math.expm1(-r1 * h) * x0, s1, convention)
    d1 = x1 - x0
    low = sigma_t / sigma * x - alpha_t * math.expm1(-h) * x0 - alpha_t / (2 * r1) * math.expm1(-h) * d1
    point = sigma_2 / sigma * x - alpha_2 * math.expm1(-r2 * h) * x0
    point = point + alpha_2 * r2 / r1 * (math.expm1(-r2 * h) / (r2 * h) + 1) * d1
    d2 = denoised(sde, model, point, s2, convention) - x0
    high = sigma_t / sigma * x - alpha_t * math.expm1(-h) * x0 + alpha_t / r2 * (math.expm1(-h) / h + 1) * d2
    return low, high

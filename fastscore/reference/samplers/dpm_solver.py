"""DPM-Solver and DPM-Solver++, every step as its paper prints it.

Source: Lu et al., arXiv 2206.00927, section 3, algorithms 1 and 2 (solvers of the noise); arXiv 2211.01095, section 4,
algorithms 1 and 2 (solvers of the clean image). The papers' order 2 is the "midpoint" one; "taylor", multistep of the
noise and order 3 of the clean image are those of the published code, in whose multistep of order 3 the curvature is
half of the parabola's: that is "midpoint" here, and "taylor" has all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised as denoised_of
from fastscore.reference.samplers._network import noise as noise_of
from fastscore.reference.samplers.ode import spaced_times

if TYPE_CHECKING:
    from fastscore.noise import Noise
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]
    Point = tuple[float, float, float, float]  # t, alpha, sigma, lambda

__all__ = ["dpm_solver_sampler"]


@torch.no_grad()
def dpm_solver_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    noise: Noise,
    convention: Convention,
    *,
    steps: int,
    order: int = 2,
    method: str = "multistep",
    algorithm: str = "dpmsolver++",
    solver_type: str = "midpoint",
    spacing: str | Tensor = "log_snr",
    lower_order_final: bool = True,
    denoise: bool = False,
    denoise_to_zero: bool = False,
    eta: float = 0.0,
    eps: float = 1e-3,
    clip: float | None = None,
) -> Tensor:
    """From the state x of shape (B, ...) at the first time; arguments as for `fastscore.DPMSolverSampler`."""

    def predict(x: Tensor, point: Point, target: str) -> Tensor:
        t = point[0]
        if clip is None:
            return (denoised_of if target == "dpmsolver++" else noise_of)(sde, model, x, t, convention)
        image = denoised_of(sde, model, x, t, convention).clamp(-clip, clip)
        if target == "dpmsolver++":
            return image
        alpha, sigma = (float(c) for c in convention.marginal(sde, torch.tensor(t, dtype=torch.float64)))
        return (x - alpha * image) / sigma

    solver = _Noise() if algorithm == "dpmsolver" else _Image()
    if method == "multistep":
        points = _points(sde, spacing, steps, eps, denoise)
        history: list[tuple[Point, Tensor]] = []
        for i in range(steps):
            s, t = points[i], points[i + 1]
            history = [*history[-2:], (s, predict(x, s, algorithm))]
            k = min(order, i + 1)
            if lower_order_final and steps < 15:
                k = min(k, steps - i)
            if t[2] == 0:
                k = 1
            if k == 1:
                x = solver.step_1(x, s, t, history[-1][1])
            elif k == 2:
                x = solver.multistep_2(x, t, history, solver_type)
            else:
                x = solver.multistep_3(x, t, history, solver_type)
        end = points[-1]
    else:
        blocks = _blocks(sde, spacing, steps, order, method, eps, denoise)
        end = blocks[-1][-1]
        for i, block in enumerate(blocks):
            s, t = block[0], block[-1]
            aim, added = t, 0.0
            if eta and t is not end:  # down by the ODE, up by noise, in sigma / alpha
                low, high = t[2] / t[1], s[2] / s[1]
                added = min(low, eta * (low**2 * (high**2 - low**2) / high**2) ** 0.5)
                lowest = end[2] / end[1]
                if (low**2 - added**2) ** 0.5 < lowest:
                    added = (low**2 - lowest**2) ** 0.5
                aim = _at_log_ratio(sde, -0.5 * math.log(low**2 - added**2))
            if eta:
                block = [s, *_evenly(sde, s, aim, len(block) - 1), aim]
            if len(block) == 2:
                x = solver.step_1(x, s, aim, predict(x, s, algorithm))
            elif len(block) == 3:
                x = solver.singlestep_2(x, block, lambda x, p: predict(x, p, algorithm), solver_type)
            else:
                x = solver.singlestep_3(x, block, lambda x, p: predict(x, p, algorithm), solver_type)
            if added:
                # the draw belongs to the row of the table: one row for every call
                draw = sum(len(b) - 1 for b in blocks[: i + 1])
                z = noise.normal(tuple(x.shape), dtype=x.dtype, device=x.device, draw=draw)
                x = t[1] * (x / aim[1]) + t[1] * added * z
    return predict(x, end, "dpmsolver++") if denoise_to_zero else x


class _Noise:
    """Solvers of the noise eps, arXiv 2206.00927."""

    def step_1(self, x: Tensor, s: Point, t: Point, eps: Tensor) -> Tensor:
        """DPM-Solver-1, which is DDIM."""
        if t[2] == 0:  # the limit of h to infinity: sigma_t (e^h - 1) is alpha_t sigma_s / alpha_s - sigma_t
            return t[1] / s[1] * x - t[1] * s[2] / s[1] * eps
        return t[1] / s[1] * x - t[2] * math.expm1(t[3] - s[3]) * eps

    def singlestep_2(self, x: Tensor, block: list[Point], eps: Callable[..., Tensor], solver_type: str) -> Tensor:
        """Algorithm 1, for any r_1."""
        s, s_1, t = block
        h = t[3] - s[3]
        r_1 = (s_1[3] - s[3]) / h
        eps_s = eps(x, s)
        u = s_1[1] / s[1] * x - s_1[2] * math.expm1(r_1 * h) * eps_s
        difference = eps(u, s_1) - eps_s
        x = t[1] / s[1] * x - t[2] * math.expm1(h) * eps_s
        if solver_type == "midpoint":
            return x - t[2] / (2 * r_1) * math.expm1(h) * difference
        return x - t[2] / r_1 * (math.expm1(h) / h - 1) * difference

    def singlestep_3(self, x: Tensor, block: list[Point], eps: Callable[..., Tensor], solver_type: str) -> Tensor:
        """Algorithm 2, for any r_1 and r_2."""
        s, s_1, s_2, t = block
        h = t[3] - s[3]
        r_1, r_2 = (s_1[3] - s[3]) / h, (s_2[3] - s[3]) / h
        eps_s = eps(x, s)
        u_1 = s_1[1] / s[1] * x - s_1[2] * math.expm1(r_1 * h) * eps_s
        difference_1 = eps(u_1, s_1) - eps_s
        u_2 = s_2[1] / s[1] * x - s_2[2] * math.expm1(r_2 * h) * eps_s
        u_2 = u_2 - s_2[2] * r_2 / r_1 * (math.expm1(r_2 * h) / (r_2 * h) - 1) * difference_1
        difference_2 = eps(u_2, s_2) - eps_s
        x = t[1] / s[1] * x - t[2] * math.expm1(h) * eps_s
        if solver_type == "midpoint":
            return x - t[2] / r_2 * (math.expm1(h) / h - 1) * difference_2
        slope, curvature = _parabola(r_1, r_2, difference_1, difference_2)
        x = x - t[2] * (math.expm1(h) / h - 1) * slope
        return x - t[2] * ((math.expm1(h) - h) / h**2 - 0.5) * curvature

    def multistep_2(self, x: Tensor, t: Point, history: list[tuple[Point, Tensor]], solver_type: str) -> Tensor:
        (s_1, eps_1), (s, eps_s) = history[-2:]
        h = t[3] - s[3]
        slope = (eps_s - eps_1) / ((s[3] - s_1[3]) / h)
        x = t[1] / s[1] * x - t[2] * math.expm1(h) * eps_s
        if solver_type == "midpoint":
            return x - 0.5 * t[2] * math.expm1(h) * slope
        return x - t[2] * (math.expm1(h) / h - 1) * slope

    def multistep_3(self, x: Tensor, t: Point, history: list[tuple[Point, Tensor]], solver_type: str) -> Tensor:
        slope, curvature = _backward(t, history)
        s, eps_s = history[-1]
        h = t[3] - s[3]
        x = t[1] / s[1] * x - t[2] * math.expm1(h) * eps_s - t[2] * (math.expm1(h) / h - 1) * slope
        half = 0.5 if solver_type == "midpoint" else 1.0
        return x - half * t[2] * ((math.expm1(h) - h) / h**2 - 0.5) * curvature


class _Image:
    """Solvers of the clean image x_0, arXiv 2211.01095."""

    def step_1(self, x: Tensor, s: Point, t: Point, image: Tensor) -> Tensor:
        """DDIM again, also where sigma_t is 0 and h infinite."""
        return t[2] / s[2] * x - t[1] * math.expm1(-(t[3] - s[3])) * image

    def singlestep_2(self, x: Tensor, block: list[Point], image: Callable[..., Tensor], solver_type: str) -> Tensor:
        """Algorithm 1."""
        s, s_1, t = block
        h = t[3] - s[3]
        r_1 = (s_1[3] - s[3]) / h
        image_s = image(x, s)
        u = s_1[2] / s[2] * x - s_1[1] * math.expm1(-r_1 * h) * image_s
        image_1 = image(u, s_1)
        if solver_type == "midpoint":
            mixed = (1 - 1 / (2 * r_1)) * image_s + 1 / (2 * r_1) * image_1
            return t[2] / s[2] * x - t[1] * math.expm1(-h) * mixed
        x = t[2] / s[2] * x - t[1] * math.expm1(-h) * image_s
        return x + t[1] / r_1 * (math.expm1(-h) / h + 1) * (image_1 - image_s)

    def singlestep_3(self, x: Tensor, block: list[Point], image: Callable[..., Tensor], solver_type: str) -> Tensor:
        s, s_1, s_2, t = block
        h = t[3] - s[3]
        r_1, r_2 = (s_1[3] - s[3]) / h, (s_2[3] - s[3]) / h
        image_s = image(x, s)
        u_1 = s_1[2] / s[2] * x - s_1[1] * math.expm1(-r_1 * h) * image_s
        difference_1 = image(u_1, s_1) - image_s
        u_2 = s_2[2] / s[2] * x - s_2[1] * math.expm1(-r_2 * h) * image_s
        u_2 = u_2 + r_2 / r_1 * s_2[1] * (math.expm1(-r_2 * h) / (r_2 * h) + 1) * difference_1
        difference_2 = image(u_2, s_2) - image_s
        x = t[2] / s[2] * x - t[1] * math.expm1(-h) * image_s
        if solver_type == "midpoint":
            return x + t[1] / r_2 * (math.expm1(-h) / h + 1) * difference_2
        slope, curvature = _parabola(r_1, r_2, difference_1, difference_2)
        x = x + t[1] * (math.expm1(-h) / h + 1) * slope
        return x - t[1] * ((math.expm1(-h) + h) / h**2 - 0.5) * curvature

    def multistep_2(self, x: Tensor, t: Point, history: list[tuple[Point, Tensor]], solver_type: str) -> Tensor:
        """Algorithm 2."""
        (s_1, image_1), (s, image_s) = history[-2:]
        h = t[3] - s[3]
        r = (s[3] - s_1[3]) / h
        if solver_type == "midpoint":
            mixed = (1 + 1 / (2 * r)) * image_s - 1 / (2 * r) * image_1
            return t[2] / s[2] * x - t[1] * math.expm1(-h) * mixed
        x = t[2] / s[2] * x - t[1] * math.expm1(-h) * image_s
        return x + t[1] * (math.expm1(-h) / h + 1) * (image_s - image_1) / r

    def multistep_3(self, x: Tensor, t: Point, history: list[tuple[Point, Tensor]], solver_type: str) -> Tensor:
        slope, curvature = _backward(t, history)
        s, image_s = history[-1]
        h = t[3] - s[3]
        x = t[2] / s[2] * x - t[1] * math.expm1(-h) * image_s + t[1] * (math.expm1(-h) / h + 1) * slope
        half = 0.5 if solver_type == "midpoint" else 1.0
        return x - half * t[1] * ((math.expm1(-h) + h) / h**2 - 0.5) * curvature


def _parabola(r_1: float, r_2: float, difference_1: Tensor, difference_2: Tensor) -> tuple[Tensor, Tensor]:
    """h m' and h^2 m'' at s of the parabola through m_s, and m at s + r_1 h and s + r_2 h."""
    slope = (r_2 * difference_1 / r_1 - r_1 * difference_2 / r_2) / (r_2 - r_1)
    return slope, 2 * (difference_2 / r_2 - difference_1 / r_1) / (r_2 - r_1)


def _backward(t: Point, history: list[tuple[Point, Tensor]]) -> tuple[Tensor, Tensor]:
    """h m' and h^2 m'' at s by Newton's divided differences of the last three predictions."""
    (s_2, m_2), (s_1, m_1), (s, m) = history[-3:]
    h = t[3] - s[3]
    r_0, r_1 = (s[3] - s_1[3]) / h, (s_1[3] - s_2[3]) / h
    first, second = (m - m_1) / r_0, (m_1 - m_2) / r_1
    slope = first + r_0 / (r_0 + r_1) * (first - second)
    return slope, 2 * (first - second) / (r_0 + r_1)


def _point(sde: SDE, t: float) -> Point:
    alpha, sigma = (float(c) for c in sde.marginal(t))
    return t, alpha, sigma, math.log(alpha / sigma)


def _at_log_ratio(sde: SDE, value: float) -> Point:
    return _point(sde, float(sde.inverse_log_snr(torch.tensor(2 * value, dtype=torch.float64))))


def _evenly(sde: SDE, s: Point, t: Point, parts: int) -> list[Point]:
    return [_at_log_ratio(sde, s[3] + (t[3] - s[3]) * k / parts) for k in range(1, parts)]


def _points(sde: SDE, spacing: str | Tensor, steps: int, eps: float, clean: bool) -> list[Point]:
    """The ends of the steps."""
    times = spacing if isinstance(spacing, Tensor) else spaced_times(sde, spacing, steps + 1 - clean, eps)
    return [_point(sde, t) for t in times.tolist()] + [(0.0, 1.0, 0.0, math.inf)] * clean


def _blocks(
    sde: SDE, spacing: str | Tensor, steps: int, order: int, method: str, eps: float, clean: bool
) -> list[list[Point]]:
    """Start, inner points and end of every singlestep step."""
    orders = []
    left = steps
    while left:  # section 3.4: the highest order as long as calls are left, and a last step below order 3
        k = min(order, left)
        if method == "singlestep" and order == 3 and left == 3:
            k = 2
        if clean and k == left and k > 1:
            k -= 1
        orders.append(k)
        left -= k
    blocks = []
    if isinstance(spacing, str) and spacing == "log_snr":
        ends = _points(sde, spacing, len(orders), eps, clean)
        for s, t, k in zip(ends[:-1], ends[1:], orders, strict=True):
            blocks.append([s, *_evenly(sde, s, t, k), t])
        return blocks
    points, at = _points(sde, spacing, steps, eps, clean), 0
    for k in orders:
        blocks.append(points[at : at + k + 1])
        at += k
    return blocks

"""The steps of DPM-Solver and DPM-Solver++, written for x_t = alpha_t x_0 + sigma_t eps of any schedule.

With lambda = log(alpha / sigma), h = lambda_t - lambda_s and m the prediction along the path, both solvers expand

    x_t = ratio x_s - scale (phi1(z) m + phi2(z) h m' + phi3(z) h^2 m'' + ...)

with phi1(z) = e^z - 1, phi2(z) = phi1(z) / z - 1 and phi3(z) = phi2(z) / z - 1/2. DPM-Solver: m the noise, ratio
alpha_t / alpha_s, scale sigma_t, z = h (arXiv 2206.00927, section 3.2). DPM-Solver++: m the clean image, ratio
sigma_t / sigma_s, scale alpha_t, z = -h (arXiv 2211.01095, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastscore.samplers.grid import Node
from fastscore.samplers.table import Expression

__all__ = ["TARGETS", "Flow", "multistep_orders", "singlestep_orders"]

TARGETS = {"dpmsolver++": "denoised", "dpmsolver": "noise"}  # algorithm -> what it integrates
FEW_STEPS = 15


@dataclass(frozen=True)
class Flow:
    """The way from node s to node t: ``ratio`` of the state, ``weights`` of m, h m' and h^2 m'', and h.

    The methods give the state at t from the state x at s and the prediction m there; further predictions come as pairs
    of their log(alpha / sigma) relative to s, in units of h, and themselves.
    """

    ratio: float
    weights: tuple[float, float, float]
    h: float

    @classmethod
    def between(cls, algorithm: str, s: Node, t: Node) -> Flow:
        """Of an algorithm of `TARGETS`. A node t without noise leaves the first weight alone meaningful."""
        h = t.log_ratio - s.log_ratio
        noise = algorithm == "dpmsolver"
        ratio, scale, z = (t.alpha / s.alpha, t.sigma, h) if noise else (t.sigma / s.sigma, t.alpha, -h)
        if t.sigma == 0:
            return cls(ratio, (t.alpha * s.ratio if noise else -t.alpha, math.nan, math.nan), h)
        phi1 = math.expm1(z)
        phi2 = phi1 / z - 1
        return cls(ratio, (scale * phi1, scale * phi2, scale * (phi2 / z - 0.5)), h)

    def first(self, x: Expression, m: Expression) -> Expression:
        """Order 1, which is DDIM."""
        return self.ratio * x - self.weights[0] * m

    def second(self, x: Expression, m: Expression, a: tuple[float, Expression], taylor: bool) -> Expression:
        """Order 2 with one more prediction; "midpoint" puts phi1 / 2, which agrees to order h^2, for phi2."""
        slope = (a[1] - m) / a[0]
        return self.first(x, m) - (self.weights[1] if taylor else 0.5 * self.weights[0]) * slope

    def third(
        self, x: Expression, m: Expression, a: tuple[float, Expression], b: tuple[float, Expression], last: float
    ) -> Expression:
        """Order 3 with two more predictions: slope and curvature of the parabola; `last` multiplies the curvature."""
        (r_a, m_a), (r_b, m_b) = a, b
        slope_a, slope_b = (m_a - m) / r_a, (m_b - m) / r_b
        slope = (r_b * slope_a - r_a * slope_b) / (r_b - r_a)
        curvature = 2 * (slope_b - slope_a) / (r_b - r_a)
        return self.first(x, m) - self.weights[1] * slope - last * self.weights[2] * curvature


def multistep_orders(steps: int, order: int, lower_order_final: bool, clean: bool) -> list[int]:
    """The order of every step: rising at the start, falling at the end where asked and where steps are few."""
    lower = lower_order_final and steps < FEW_STEPS
    orders = [min(order, i + 1, steps - i if lower else order) for i in range(steps)]
    if clean:
        orders[-1] = 1
    return orders


def singlestep_orders(calls: int, order: int, fixed: bool, clean: bool) -> list[int]:
    """The order, and so the number of network calls, of every step (arXiv 2206.00927, section 3.4)."""
    full, rest = divmod(calls, order)
    if order == 3 and rest == 0 and not fixed:
        orders = [3] * (full - 1) + [2, 1]
    else:
        orders = [order] * full + [rest] * (rest > 0)
    if clean and orders[-1] > 1:
        orders[-1:] = [orders[-1] - 1, 1]
    return orders

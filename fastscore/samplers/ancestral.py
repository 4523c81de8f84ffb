"""Ancestral sampling in the noise level: a deterministic step below the next level, and noise up to it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_number
from fastscore.samplers.grid import node_at, path
from fastscore.samplers.table import Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["EulerAncestralSampler", "down_and_up"]


class EulerAncestralSampler(FixedStepSampler):
    """Euler (or midpoint) steps to below the next noise level, and fresh noise up to it.

    In ``y = x / alpha`` and ``s = sigma / alpha``, from s to s1: ``up = min(s1, eta s1 sqrt(s^2 - s1^2) / s)``,
    ``down = sqrt(s1^2 - up^2)``; the probability-flow ODE ``dy/ds = eps`` is followed from s to down, and
    ``s_noise up z`` is added. With order 1 this is the posterior of DDPM and DDIM with their eta, at any noise levels
    (arXiv 2010.02502, eq. 12): ancestral sampling for eta = 1, Euler's method in s for eta = 0.

    The counterparts in k-diffusion: euler_ancestral, and dpm_2_ancestral for ``order=2``.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        order: 1: one Euler step, one network call; 2: the midpoint method with the midpoint in log s, two calls.
        eta: share of the noise that is fresh, >= 0.
        s_noise: standard deviation of the fresh noise, >= 0.
        spacing: the times, see `ODESampler`. Given times are as many as there are steps; without `denoise` one more.
        rho: exponent of the Karras grid, at least 1.
        denoise: the last step leads from eps to the clean image; else the last step leads to eps.

    Source: the posterior of Ho et al., arXiv 2006.11239, eq. 6 and 7, in the noise levels of Karras et al.,
    arXiv 2206.00364; the solver of order 2 is k-diffusion's.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 50,
        order: int = 1,
        eta: float = 1.0,
        s_noise: float = 1.0,
        spacing: str | Tensor = "karras",
        rho: float = 7.0,
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        if order not in (1, 2):
            raise ValueError(f"EulerAncestralSampler: order must be 1 or 2, got {order!r}")
        for name, value in (("eta", eta), ("s_noise", s_noise)):
            check_number("EulerAncestralSampler", name, value, least=0.0)
        self.order, self.eta, self.s_noise, self.denoise = order, float(eta), float(s_noise), bool(denoise)
        self._path = path("EulerAncestralSampler", sde, spacing, steps, self.eps, rho, clean=self.denoise)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        for node, after in itertools.pairwise(self._path):
            s, s1 = node.ratio, after.ratio
            down, up = down_and_up(s, s1, self.eta)
            y, slope, name = table.x / node.alpha, table.evaluate("noise", node), "euler"
            if self.order == 2 and down > 0:
                middle, name = node_at(self.sde, math.sqrt(s * down)), "midpoint"
                table.stage(middle.alpha * (y + (middle.ratio - s) * slope), middle, name="euler")
                slope = table.evaluate("noise", middle)
            table.step(after.alpha * (y + (down - s) * slope), after, noise=after.alpha * self.s_noise * up, name=name)


def down_and_up(s: float, s1: float, eta: float = 1.0) -> tuple[float, float]:
    """The level below s1 to which a step from the level s leads, and the noise from there up to s1."""
    up = min(s1, eta * s1 * math.sqrt((s - s1) * (s + s1)) / s)
    return math.sqrt((s1 - up) * (s1 + up)), up

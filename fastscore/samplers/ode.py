"""Fixed-step Runge-Kutta methods for the probability-flow ODE, in time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_choice
from fastscore.samplers.grid import Node, nodes, path
from fastscore.samplers.table import Expression, Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["ODE_METHODS", "ODESampler"]

# Butcher tableaus: the rows below the first, with which a stage combines the slopes before it, and the weights.
ODE_METHODS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "heun": (((1.0,),), (1 / 2, 1 / 2)),
    "rk4": (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class ODESampler(FixedStepSampler):
    """The probability-flow ODE ``dx/dt = f x - g^2 score / 2`` by Euler's, Heun's or the classical Runge-Kutta method.

    Deterministic given the first state. The error falls with the 1st, 2nd or 4th power of the step; Euler's method
    calls the network once a step, Heun's twice and Runge-Kutta's four times. Between two levels of a `DiscreteVPSDE` f
    is constant and at a level it jumps, so that orders above 1 do not show there; `EDMSampler` works in the noise
    level, where nothing jumps.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        method: ``"euler"``, ``"heun"`` or ``"rk4"``.
        spacing: the times: ``"linear"`` (even in t), ``"quadratic"`` (even in sqrt(t)), ``"log_snr"``, ``"karras"``
            (even in ``(sigma / alpha)^(1 / rho)``), or a falling tensor of steps + 1 times, whose first is that of
            the first state. If at the last one nothing is left of the noise (t = 0 of VP), the step to it is Euler's.
        rho: exponent of the Karras grid, at least 1.

    Source: Song et al., arXiv 2011.13456, eq. 13.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 50,
        method: str = "heun",
        spacing: str | Tensor = "linear",
        rho: float = 7.0,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        check_choice("ODESampler", "method", method, tuple(ODE_METHODS))
        self.method = method
        self._path = path("ODESampler", sde, spacing, steps, self.eps, rho)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        self._follow(table, self._path)

    def _follow(self, table: Table, path: Sequence[Node]) -> None:
        for node, after in itertools.pairwise(path):
            stages, weights = ODE_METHODS["euler" if after.sigma == 0 else self.method]
            x, h = table.x, after.t - node.t
            slopes = [self._slope(table, x, node)]
            for row in stages:
                middle = nodes(self.sde, torch.tensor([node.t + sum(row) * h], dtype=torch.float64))[0]
                point = _combined(x, h, row, slopes)
                table.stage(point, middle, name=self.method)
                slopes.append(self._slope(table, point, middle))
            table.step(_combined(x, h, weights, slopes), after, name=self.method)

    def _slope(self, table: Table, x: Expression, node: Node) -> Expression:
        f, g = float(self.sde.drift_coefficient(node.t)), float(self.sde.diffusion(node.t))
        return f * x - 0.5 * g**2 * table.evaluate("score", node)


def _combined(x: Expression, h: float, weights: tuple[float, ...], slopes: list[Expression]) -> Expression:
    for weight, slope in zip(weights, slopes, strict=True):
        x = x + h * weight * slope
    return x

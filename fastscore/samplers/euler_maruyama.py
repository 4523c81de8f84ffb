"""Euler-Maruyama for the reverse-time SDE on its true grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.base import FixedStepSampler
from fastscore.samplers.grid import nodes
from fastscore.samplers.predictors import euler_maruyama
from fastscore.samplers.table import Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["EulerMaruyamaSampler"]


class EulerMaruyamaSampler(FixedStepSampler):
    """Euler-Maruyama from t = 1 to eps in N equal steps: weak order 1 (Kloeden and Platen 1992, section 14.1).

    `PCSampler` with ``predictor="euler_maruyama"`` has the published grid instead, whose steps of 1 / N do not add up
    to 1 - eps.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        probability_flow: Euler's method for the probability-flow ODE in place of the SDE.
        denoise: leave out the noise of the last step, at no extra network call.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 1000,
        probability_flow: bool = False,
        eps: float | None = None,
        denoise: bool = True,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        self.probability_flow, self.denoise = bool(probability_flow), bool(denoise)
        self.plan()

    def _tabulate(self, table: Table) -> None:
        times = torch.linspace(self.sde.T, self.eps, self.steps + 1, dtype=torch.float64)
        update = euler_maruyama(self.sde, times[:-1], times[:-1] - times[1:], self.probability_flow)
        rows, grid = (update.denoised() if self.denoise else update).rows(), nodes(self.sde, times)
        for i, (x, score, z) in enumerate(rows):
            moved = x * table.x + score * table.evaluate("score", grid[i])
            table.step(moved, grid[i + 1], noise=z, draws=True, name="euler_maruyama")

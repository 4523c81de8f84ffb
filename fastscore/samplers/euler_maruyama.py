"""Euler-Maruyama for the reverse-time SDE on its true grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.base import Sampler
from fastscore.samplers.plan import Plan, make_steps
from fastscore.samplers.predictors import euler_maruyama
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["EulerMaruyamaSampler"]


class EulerMaruyamaSampler(Sampler):
    """Euler-Maruyama from t = 1 to eps in N equal steps: weak order 1 (Kloeden and Platen 1992, section 14.1).

    `PCSampler` with ``predictor="euler_maruyama"`` has the published grid instead, whose steps of 1 / N do not add up
    to 1 - eps.

    Args:
        sde, model, steps, eps, denoise, convention: see `Sampler`.
        probability_flow: Euler's method for the probability-flow ODE in place of the SDE.
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
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, denoise=denoise, convention=convention)
        self.probability_flow = bool(probability_flow)
        times = torch.linspace(sde.T, self.eps, steps + 1, dtype=torch.float64)
        update = euler_maruyama(sde, times[:-1], times[:-1] - times[1:], self.probability_flow)
        if self.denoise:
            update = update.denoised()
        self._plan = Plan(tuple(make_steps("euler_maruyama", update, sde, self.convention, times[:-1])))

    def plan(self) -> Plan:
        return self._plan

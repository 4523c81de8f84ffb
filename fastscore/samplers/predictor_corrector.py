"""The predictor-corrector sampler of score-based models."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.base import Sampler, check_count
from fastscore.samplers.correctors import CORRECTORS
from fastscore.samplers.plan import Plan, Step, make_steps
from fastscore.samplers.predictors import PREDICTORS
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["PCSampler"]


class PCSampler(Sampler):
    """Predictor-corrector sampling: at each of N times, corrector steps there, then a predictor step to the next time.

    The grid, the step sizes and the order are those of the published implementation, whose numbers this sampler gives
    back: N times evenly spaced from 1 to eps; Euler-Maruyama with step 1 / N.

    Args:
        sde, model, steps, eps, denoise, convention: see `Sampler`.
        predictor: ``"euler_maruyama"``, ``"reverse_diffusion"``, ``"ancestral"`` or ``"none"``.
        corrector: ``"langevin"``, ``"ald"`` (annealed Langevin dynamics) or ``"none"``.
        snr: signal-to-noise ratio of the corrector's step, >= 0. Published: 0.16 for CIFAR-10, 0.075 for LSUN, 0.15
            at 1024 px.
        corrector_steps: corrector steps per time, >= 0.
        norm: ``"batch"``: the Langevin step size comes from norms averaged over the batch, as published;
            ``"sample"``: from each sample's own, so that a sample does not depend on its batchmates.
        probability_flow: follow the probability-flow ODE in the predictor (no noise); not with ``"ancestral"``.

    Source: Song et al., arXiv 2011.13456, algorithms 1 to 5.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        *,
        snr: float = 0.16,
        steps: int = 1000,
        corrector_steps: int = 1,
        norm: str = "batch",
        probability_flow: bool = False,
        eps: float | None = None,
        denoise: bool = True,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, denoise=denoise, convention=convention)
        for name, value, known in (
            ("predictor", predictor, tuple(PREDICTORS)),
            ("corrector", corrector, tuple(CORRECTORS)),
            ("norm", norm, ("batch", "sample")),
        ):
            if value not in known:
                raise ValueError(f"PCSampler: {name} must be one of {', '.join(known)}, got {value!r}")
        if not 0 <= snr < math.inf:
            raise ValueError(f"PCSampler: snr must be a finite number >= 0, got {snr!r}")
        check_count("PCSampler", "corrector_steps", corrector_steps, 0)
        if probability_flow and predictor == "ancestral":
            raise ValueError(
                "PCSampler: probability_flow is not defined for predictor='ancestral', which samples a posterior; "
                "use 'reverse_diffusion' or 'euler_maruyama'"
            )
        self.predictor, self.corrector, self.norm = predictor, corrector, norm
        self.snr, self.corrector_steps, self.probability_flow = float(snr), corrector_steps, bool(probability_flow)
        self._plan = self._make_plan()

    def plan(self) -> Plan:
        return self._plan

    def _make_plan(self) -> Plan:
        n = self.steps
        times = torch.linspace(self.sde.T, self.eps, n, dtype=torch.float64)
        corrections: list[Step] = []
        predictions: list[Step] = []
        correct, predict = CORRECTORS[self.corrector], PREDICTORS[self.predictor]
        if correct is not None and self.corrector_steps:
            update = correct(self.sde, times, n, self.snr)
            corrections = make_steps(self.corrector, update, self.sde, self.convention, times)
        if predict is not None:
            update = predict(self.sde, times, n, self.probability_flow)
            if self.denoise:
                update = update.denoised()
            predictions = make_steps(self.predictor, update, self.sde, self.convention, times)
        steps: list[Step] = []
        for i in range(n):
            steps += corrections[i : i + 1] * self.corrector_steps + predictions[i : i + 1]
        return Plan(tuple(steps))

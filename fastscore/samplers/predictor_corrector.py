"""The predictor-corrector sampler of score-based models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_choice, check_count, check_number
from fastscore.samplers.correctors import CORRECTORS
from fastscore.samplers.grid import nodes
from fastscore.samplers.plan import LANGEVIN
from fastscore.samplers.predictors import PREDICTORS
from fastscore.samplers.table import Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["PCSampler"]


class PCSampler(FixedStepSampler):
    """Predictor-corrector sampling: at each of N times, corrector steps there, then a predictor step to the next time.

    The grid, the step sizes and the order are those of the published implementation, whose numbers this sampler gives
    back: N times evenly spaced from 1 to eps; Euler-Maruyama with step 1 / N.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        predictor: ``"euler_maruyama"``, ``"reverse_diffusion"``, ``"ancestral"`` or ``"none"``.
        corrector: ``"langevin"``, ``"ald"`` (annealed Langevin dynamics) or ``"none"``.
        snr: signal-to-noise ratio of the corrector's step, >= 0. Published: 0.16 for CIFAR-10, 0.075 for LSUN, 0.15
            at 1024 px.
        corrector_steps: corrector steps per time, >= 0.
        norm: ``"batch"``: the Langevin step size comes from norms averaged over the batch, as published;
            ``"sample"``: from each sample's own, so that a sample does not depend on its batchmates.
        probability_flow: follow the probability-flow ODE in the predictor (no noise); not with ``"ancestral"``.
        denoise: leave out the noise of the last predictor step, at no extra network call.

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
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        check_choice("PCSampler", "predictor", predictor, tuple(PREDICTORS))
        check_choice("PCSampler", "corrector", corrector, tuple(CORRECTORS))
        check_choice("PCSampler", "norm", norm, ("batch", "sample"))
        check_number("PCSampler", "snr", snr, least=0.0)
        check_count("PCSampler", "corrector_steps", corrector_steps, 0)
        if probability_flow and predictor == "ancestral":
            raise ValueError(
                "PCSampler: probability_flow is not defined for predictor='ancestral', which samples a posterior; "
                "use 'reverse_diffusion' or 'euler_maruyama'"
            )
        self.predictor, self.corrector, self.norm = predictor, corrector, norm
        self.snr, self.corrector_steps, self.probability_flow = float(snr), corrector_steps, bool(probability_flow)
        self.denoise = bool(denoise)
        self.plan()

    def _tabulate(self, table: Table) -> None:
        n = self.steps
        whole = round(n / self.sde.T)  # of the chain, which goes on to t = 1
        times = torch.linspace(self.sde.T, self.eps, n, dtype=torch.float64)
        grid = nodes(self.sde, times)
        correct, predict = CORRECTORS[self.corrector], PREDICTORS[self.predictor]
        correction = None if correct is None else correct(self.sde, times, whole, self.snr)
        prediction = None if predict is None else predict(self.sde, times, whole, self.probability_flow)
        if prediction is not None and self.denoise:
            prediction = prediction.denoised()
        corrections = correction.rows() if correction is not None else []
        predictions = prediction.rows() if prediction is not None else []
        for i, node in enumerate(grid):
            for _, length, z in corrections[i : i + 1] * self.corrector_steps:
                if correction is not None and correction.kind == LANGEVIN:
                    table.langevin(length, node, self.corrector)
                else:
                    moved = table.x + length * table.evaluate("score", node)
                    table.step(moved, node, noise=z, draws=True, name=self.corrector)
            for x, score, z in predictions[i : i + 1]:
                moved = x * table.x + score * table.evaluate("score", node)
                table.step(moved, grid[min(i + 1, n - 1)], noise=z, draws=True, name=self.predictor)

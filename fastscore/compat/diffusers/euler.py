"""`EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler` with a fused step."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
    EulerAncestralDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, EulerDiscreteSchedulerOutput
from torch import Tensor

from fastscore import _checks
from fastscore.compat.diffusers._base import FusedStep, Generators, common, draw
from fastscore.compat.diffusers._rows import Coefficients, table, unscaled_level
from fastscore.ops import linear_step
from fastscore.samplers.ancestral import down_and_up
from fastscore.samplers.base import check_number
from fastscore.samplers.edm import MOST_CHURN
from fastscore.samplers.table import Table

__all__ = ["FastEulerAncestralDiscreteScheduler", "FastEulerDiscreteScheduler"]


class FastEulerDiscreteScheduler(FusedStep, EulerDiscreteScheduler):
    """`diffusers.EulerDiscreteScheduler` with all its options; churn (`s_churn`) is an operator of its own.

    Raises:
        ValueError: for an unknown prediction_type.

    Source: Karras et al., arXiv 2206.00364, algorithm 2 without its second-order correction.
    """

    _predictions = ("epsilon", "sample", "original_sample", "v_prediction")

    @functools.wraps(EulerDiscreteScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()
        self._rows()

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """Move `sample`, (B, ...), one step; `timestep` counts at the first only; see the stock scheduler.

        Raises:
            ValueError: for an integer timestep, a first one that is not one of `timesteps`, a step after the last, a
                negative s_churn, or shapes that differ.
        """
        _refuse_integers(self, timestep)
        i = self._place(timestep)
        rows = self._rows()
        if s_churn:
            check_number(type(self).__name__, "s_churn", s_churn, least=0.0)
            options = float(s_churn), float(s_tmin), float(s_tmax), float(s_noise)
            rows, sample = self._rows(*options), self._churned(i, model_output, sample, generator, options)
        out, clean = self._fused(rows, i - self._first, model_output, sample)
        self._step_index = i + 1
        out = out.to(model_output.dtype)
        if not return_dict:
            return out, clean
        return EulerDiscreteSchedulerOutput(prev_sample=out, pred_original_sample=clean)

    def _tabulate(
        self, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
    ) -> Table:
        prediction = self.config.prediction_type.removeprefix("original_")
        steps = table(prediction, unscaled=True)
        for sigma, sigma_next in itertools.pairwise(self.sigmas.tolist()[self._first :]):
            hat = (1 + self._gamma(sigma, s_churn, s_tmin, s_tmax)) * sigma
            # as in diffusers, v is read at the level before churn
            node = unscaled_level(sigma if prediction == "v_prediction" else hat)
            slope = (steps.x - steps.evaluate("denoised", node)) / hat
            steps.step(steps.x + (sigma_next - hat) * slope, unscaled_level(sigma_next), name="euler")
        return steps

    def _gamma(self, sigma: float, s_churn: float, s_tmin: float, s_tmax: float) -> float:
        """By what part of itself a step first raises the noise."""
        return min(s_churn / (len(self.sigmas) - 1), MOST_CHURN) if s_tmin <= sigma <= s_tmax else 0.0

    def _churned(
        self, i: int, model_output: Tensor, sample: Tensor, generator: Generators, options: tuple[float, ...]
    ) -> Tensor:
        """The state with the noise that step i puts on it first, if it does."""
        if options not in self._churn:
            *bounds, s_noise = options
            levels = [(sigma, self._gamma(sigma, *bounds)) for sigma in self.sigmas.tolist()]
            rows = [(1.0, s_noise * sigma * math.sqrt(gamma * (2 + gamma))) for sigma, gamma in levels]
            self._churn[options] = Coefficients(rows), [gamma > 0 for _, gamma in levels]
        coefficients, some = self._churn[options]
        if not some[i]:
            return sample
        x, _, dtype = common(type(self).__name__, model_output, sample)
        row = coefficients.on(x.device, _checks.accumulation_dtype(dtype))[i]
        return linear_step(x, (), row, noise=draw(model_output, generator).to(dtype))

    def _restart(self) -> None:
        super()._restart()
        self._churn: dict[tuple[float, ...], tuple[Coefficients, list[bool]]] = {}


class FastEulerAncestralDiscreteScheduler(FusedStep, EulerAncestralDiscreteScheduler):
    """`diffusers.EulerAncestralDiscreteScheduler` with all its options.

    Raises:
        ValueError: for a prediction_type that the stock scheduler does not have.

    Source: euler_ancestral of k-diffusion; the posterior of Ho et al., arXiv 2006.11239, between any levels.
    """

    _predictions = ("epsilon", "v_prediction")

    @functools.wraps(EulerAncestralDiscreteScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()
        self._rows()

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """Move `sample`, (B, ...), one step; `timestep` counts at the first only; see the stock scheduler.

        Raises:
            ValueError: for an integer timestep, a first one that is not one of `timesteps`, a step after the last, or
                shapes that differ.
        """
        _refuse_integers(self, timestep)
        i = self._place(timestep)
        noise = draw(model_output, generator)
        out, clean = self._fused(self._rows(), i - self._first, model_output, sample, noise)
        self._step_index = i + 1
        out = out.to(model_output.dtype)
        if not return_dict:
            return out, clean
        return EulerAncestralDiscreteSchedulerOutput(prev_sample=out, pred_original_sample=clean)

    def _tabulate(self) -> Table:
        steps = table(self.config.prediction_type, unscaled=True)
        for sigma, sigma_next in itertools.pairwise(self.sigmas.tolist()[self._first :]):
            down, up = down_and_up(sigma, sigma_next)
            slope = steps.evaluate("noise", unscaled_level(sigma))
            steps.step(steps.x + (down - sigma) * slope, unscaled_level(sigma_next), noise=up, name="euler ancestral")
        return steps


def _refuse_integers(scheduler: FusedStep, timestep: float | Tensor) -> None:
    """The time steps of these schedulers are no integers, and could be mistaken for indices."""
    if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
        raise ValueError(
            f"{type(scheduler).__name__}: timestep must be one of the scheduler's timesteps, a float, "
            f"got the integer {timestep!r}"
        )

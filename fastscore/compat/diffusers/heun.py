"""`HeunDiscreteScheduler` with a fused step."""

from __future__ import annotations

import functools
import itertools
from typing import Any

from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler, HeunDiscreteSchedulerOutput
from torch import Tensor

from fastscore.compat.diffusers._base import FusedStep
from fastscore.compat.diffusers._rows import table, unscaled_level
from fastscore.samplers.edm import moved
from fastscore.samplers.table import Table

__all__ = ["FastHeunDiscreteScheduler"]


class FastHeunDiscreteScheduler(FusedStep, HeunDiscreteScheduler):
    """`diffusers.HeunDiscreteScheduler` with all its options.

    Source: Karras et al., arXiv 2206.00364, algorithm 1.
    """

    @functools.wraps(HeunDiscreteScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()
        if self.num_inference_steps < self.config.num_train_timesteps:
            self._rows()  # of all levels, which the constructor asks for, they are made when the first is needed

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next step is Euler's, to where the second slope is seen."""
        return self._state is None

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> HeunDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """Move `sample`, (B, ...), one step; `timestep` counts at the first only; see the stock scheduler.

        Raises:
            ValueError: for a first timestep that is not one of `timesteps` or lies in the middle of a step of Heun's
                method, a step after the last, or shapes that differ.
        """
        i = self._place(timestep)
        out, clean = self._fused(self._rows(), i - self._first, model_output, sample)
        self._step_index = i + 1
        return HeunDiscreteSchedulerOutput(prev_sample=out, pred_original_sample=clean) if return_dict else (out, clean)

    def _tabulate(self) -> Table:
        if self._first % 2:
            raise ValueError(f"FastHeunDiscreteScheduler: the first step must have an even index, got {self._first}")
        # every level but the first and the last stands there twice
        sigmas = self.sigmas.tolist()
        path = [unscaled_level(sigma) for sigma in [*sigmas[self._first :: 2], sigmas[-1]]]
        steps = table(self.config.prediction_type, clip=self._clip(), unscaled=True)
        for node, after in itertools.pairwise(path):
            end, name = moved(steps, node, after, after)
            steps.step(end, after, name=name)
        return steps

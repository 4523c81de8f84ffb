"""`DDPMScheduler` with a fused step."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, DDPMSchedulerOutput
from torch import Tensor

from fastscore.compat.diffusers._base import FusedStep, draw
from fastscore.compat.diffusers._rows import level, table
from fastscore.samplers.base import check_choice
from fastscore.samplers.ddpm import posterior_mean
from fastscore.samplers.grid import CLEAN
from fastscore.samplers.table import Table

__all__ = ["FastDDPMScheduler"]

_LEAST_STD = 1e-10  # of the posterior: diffusers has no variance below 1e-20
_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")


class FastDDPMScheduler(FusedStep, DDPMScheduler):
    """`diffusers.DDPMScheduler` with ``variance_type`` ``"fixed_small"``, ``"fixed_small_log"``, ``"fixed_large"`` or
    ``"learned_range"``.

    Raises:
        ValueError: for an option that is not supported.

    Source: Ho et al., arXiv 2006.11239, eq. 6, 7 and 11; ``"learned_range"``: Nichol and Dhariwal, arXiv 2102.09672,
    eq. 15.
    """

    @functools.wraps(DDPMScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()
        self._rows()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Move `sample`, (B, C, ...), from `timestep`, one of `timesteps`, to the next; see the stock scheduler.

        Raises:
            ValueError: for another timestep, or shapes that do not fit: `model_output` has the shape of `sample`, and
                with ``variance_type="learned_range"`` twice the channels.
        """
        exponent = None
        if self.variance_type == "learned_range":
            if model_output.shape[1] != 2 * sample.shape[1]:
                raise ValueError(
                    "FastDDPMScheduler: with variance_type='learned_range', model_output must have twice the channels "
                    f"of sample, {2 * sample.shape[1]}, got {model_output.shape[1]}"
                )
            model_output, exponent = model_output.split(sample.shape[1], 1)
        rows, i = self._rows(), self._index(timestep)
        noise = draw(model_output, generator) if self._grid[i] > 0 else None
        out, clean = self._fused(rows, i, model_output, sample, noise, exponent)
        return DDPMSchedulerOutput(prev_sample=out, pred_original_sample=clean) if return_dict else (out, clean)

    def _check(self) -> None:
        super()._check()
        check_choice("FastDDPMScheduler", "variance_type", self.config.variance_type, _VARIANCES)

    def _tabulate(self) -> Table:
        levels = [level(value) for value in self.alphas_cumprod.tolist()]
        steps = table(self.config.prediction_type, clip=self._clip())
        for t, t_next in itertools.pairwise([*map(int, self._grid), -1]):
            node, after = levels[t], CLEAN if t_next < 0 else levels[t_next]
            self._check_signal(node, t)
            mean, b = posterior_mean(steps, node, after)
            least, exponent = max(b * after.sigma / node.sigma, _LEAST_STD), None
            noise = b if self.variance_type == "fixed_large" else least
            if self.variance_type == "learned_range":
                noise, exponent = math.sqrt(b * least), 0.5 * math.log(b / least)
            steps.step(mean, after, noise=noise if t > 0 else 0.0, exponent=exponent, name="ddpm")
        return steps

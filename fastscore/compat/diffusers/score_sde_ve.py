"""`ScoreSdeVeScheduler` with a fused predictor and corrector."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler, SdeVeOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastscore import _checks
from fastscore.compat.diffusers._base import FusedStep, common
from fastscore.compat.diffusers._rows import Coefficients
from fastscore.ops import langevin_step, solver_step

__all__ = ["FastScoreSdeVeScheduler"]


class FastScoreSdeVeScheduler(FusedStep, ScoreSdeVeScheduler):
    """`diffusers.ScoreSdeVeScheduler` with all its options: predictor and corrector of the variance-exploding SDE.

    Source: Song et al., arXiv 2011.13456, eq. 46 and algorithm 4.
    """

    @functools.wraps(ScoreSdeVeScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()

    @functools.wraps(ScoreSdeVeScheduler.set_sigmas)
    def set_sigmas(self, *args: Any, **kwargs: Any) -> None:
        super().set_sigmas(*args, **kwargs)
        self._restart()
        self._predictor, self._corrector = self._coefficients()

    def step_pred(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SdeVeOutput | tuple[Tensor, Tensor]:
        """Reverse diffusion from `timestep`, in [0, 1], by the score `model_output`; see the stock scheduler.

        Raises:
            ValueError: for a timestep outside [0, 1], or shapes that differ.
        """
        owner = type(self).__name__
        x, h, dtype = common(owner, model_output, sample)
        # which level it is depends on rounding, so in float32 as in diffusers
        t = torch.tensor(self._on_host(timestep), dtype=torch.float32)
        place = int(t * (len(self.timesteps) - 1))
        if not 0 <= place < len(self.discrete_sigmas):
            raise ValueError(f"{owner}: timestep must lie in [0, 1], got {float(t)!r}")
        noise = randn_tensor(x.shape, layout=sample.layout, generator=generator, device=x.device, dtype=sample.dtype)
        row = self._predictor.on(x.device, _checks.accumulation_dtype(dtype))[place]
        out, mean = solver_step(x, h, (), row, noise=noise.to(dtype))
        return SdeVeOutput(prev_sample=out, prev_sample_mean=mean) if return_dict else (out, mean)

    def step_correct(
        self,
        model_output: Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """A Langevin step along the score `model_output`; norms are means over the batch; see the stock scheduler.

        Raises:
            ValueError: for shapes that differ.
        """
        x, h, dtype = common(type(self).__name__, model_output, sample)
        # drawn on the CPU whatever the device, as in diffusers
        noise = randn_tensor(x.shape, layout=sample.layout, generator=generator).to(x.device, dtype)
        row = self._corrector.on(x.device, _checks.accumulation_dtype(dtype))[0]
        out = langevin_step(x, h, row, noise=noise)
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _check(self) -> None:
        """All options are supported."""

    def _coefficients(self) -> tuple[Coefficients, Coefficients]:
        """Rows of `solver_step`, one per level, whose prediction is the mean; and the row of `langevin_step`."""
        rows = []
        for below, sigma in itertools.pairwise([0.0, *self.discrete_sigmas.tolist()]):
            variance = (sigma - below) * (sigma + below)
            rows.append((1.0, variance, math.inf, 0.0, 1.0, math.sqrt(variance), 0.0))
        return Coefficients(rows), Coefficients([(0.0, 1.0, 2 * self.config.snr**2)])

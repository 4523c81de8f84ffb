"""`DDIMScheduler` with a fused step."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from torch import Tensor

from fastscore.compat.diffusers._base import FusedStep, draw
from fastscore.compat.diffusers._rows import level, table
from fastscore.samplers.ddim import ddim_step
from fastscore.samplers.grid import CLEAN
from fastscore.samplers.table import Table

__all__ = ["FastDDIMScheduler"]


class FastDDIMScheduler(FusedStep, DDIMScheduler):
    """`diffusers.DDIMScheduler`, with all its options.

    Raises:
        ValueError: for an option that is not supported.

    Source: Song et al., arXiv 2010.02502, eq. 12 and 16.
    """

    @functools.wraps(DDIMScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()
        self._rows(0.0, False)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Move `sample`, (B, ...), from `timestep`, one of `timesteps`, to the one before; see the stock scheduler.

        Raises:
            ValueError: without `set_timesteps`, for another timestep, an eta outside [0, 1], noise beside a generator,
                or shapes that differ.
        """
        if self.num_inference_steps is None:
            raise ValueError("FastDDIMScheduler: call set_timesteps before step")
        if not 0 <= eta <= 1:
            raise ValueError(f"FastDDIMScheduler: eta must lie in [0, 1], got {eta!r}")
        if variance_noise is not None and generator is not None:
            raise ValueError("FastDDIMScheduler: variance_noise and generator exclude each other, got both")
        rows, noise = self._rows(float(eta), bool(use_clipped_model_output)), None
        if eta > 0:
            noise = draw(model_output, generator) if variance_noise is None else variance_noise
        out, clean = self._fused(rows, self._index(timestep), model_output, sample, noise)
        return DDIMSchedulerOutput(prev_sample=out, pred_original_sample=clean) if return_dict else (out, clean)

    def _tabulate(self, eta: float, clipped_noise: bool) -> Table:
        config, clip = self.config, self._clip()
        levels = [level(value) for value in self.alphas_cumprod.tolist()]
        final = CLEAN if config.set_alpha_to_one else levels[0]
        stride = config.num_train_timesteps // self.num_inference_steps
        steps = table(config.prediction_type, clip=clip)
        for t in map(int, self._grid):
            self._check_signal(levels[t], t)
            after = levels[t - stride] if t >= stride else final
            # where nothing is clipped both are the same, and this reads one tensor less
            ddim_step(steps, levels[t], after, eta, clipped_noise=clipped_noise or clip is None)
        return steps

"""`UniPCMultistepScheduler` with a fused step."""

from __future__ import annotations

import functools
from typing import Any

from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastscore.compat.diffusers._base import FusedStep, refuse
from fastscore.compat.diffusers._rows import falling_levels, table
from fastscore.samplers.table import Table
from fastscore.samplers.unipc import unipc_steps

__all__ = ["FastUniPCMultistepScheduler"]


class FastUniPCMultistepScheduler(FusedStep, UniPCMultistepScheduler):
    """`diffusers.UniPCMultistepScheduler` of order 1 to 3.

    The corrector is part of the step after it: its difference is added to the sample that is given, where the stock
    scheduler puts the corrected sample in place of it. Both are the same unless the sample was changed in between, as
    in inpainting; here the change stays.

    Not supported: flow matching (``"flow_prediction"``, ``use_flow_sigmas``, ``use_dynamic_shifting``), `solver_p`,
    and orders above 3.

    Raises:
        ValueError: for an option that is not supported.

    Source: Zhao et al., arXiv 2302.04867, algorithms 5 to 8.
    """

    @functools.wraps(UniPCMultistepScheduler.set_timesteps)
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._restart()
        self._rows()

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """Move `sample`, (B, ...), one step; `timestep` counts at the first only; see the stock scheduler.

        Raises:
            ValueError: without `set_timesteps`, for a first timestep that is not one of `timesteps`, a step after the
                last, or shapes that differ.
        """
        if self.num_inference_steps is None:
            raise ValueError("FastUniPCMultistepScheduler: call set_timesteps before step")
        i = self._place(timestep)
        out, _ = self._fused(self._rows(), i - self._first, model_output, sample)
        self._step_index = i + 1
        out = out.to(sample.dtype)
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _check(self) -> None:
        super()._check()
        owner, order = type(self).__name__, self.config.solver_order
        refuse(owner, self.config, use_flow_sigmas=False, use_dynamic_shifting=False, solver_p=None)
        if order not in (1, 2, 3):
            raise ValueError(f"{owner}: solver_order must be 1, 2 or 3, got {order!r}")

    def _clip(self) -> float | None:
        return super()._clip() if self.config.predict_x0 else None  # as in diffusers

    def _tabulate(self) -> Table:
        config = self.config
        path = falling_levels(type(self).__name__, self.sigmas.tolist()[self._first :])
        steps = table(config.prediction_type, clip=self._clip(), denoised=False)
        skipped = [i - self._first for i in self.disable_corrector]
        unipc_steps(
            steps, path, config.solver_order, config.solver_type, config.predict_x0, skipped, config.lower_order_final
        )
        return steps

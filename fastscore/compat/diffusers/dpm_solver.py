"""`DPMSolverMultistepScheduler` with a fused step."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from dataclasses import replace
from typing import Any

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastscore.compat.diffusers._base import FusedStep, draw, refuse
from fastscore.compat.diffusers._rows import falling_levels, table
from fastscore.samplers.dpm_solver_formulas import FEW_STEPS, TARGETS, Flow
from fastscore.samplers.sde_dpm_solver import stochastic_flow
from fastscore.samplers.table import Expression, Table

__all__ = ["FastDPMSolverMultistepScheduler"]

_STILL = 1e-6  # relative: a step between levels as close as this, equal but for rounding, leads nowhere


class FastDPMSolverMultistepScheduler(FusedStep, DPMSolverMultistepScheduler):
    """`diffusers.DPMSolverMultistepScheduler` with all its algorithms, orders and spacings of sigma.

    With ``algorithm_type="sde-dpmsolver++"`` and ``solver_order=3`` it gives the stock numbers, although a sign in them
    is wrong; `fastscore.SDEDPMSolverSampler` has it right.

    Not supported: flow matching (``"flow_prediction"``, ``use_flow_sigmas``, ``use_dynamic_shifting``), and
    thresholding with an algorithm that integrates the noise.

    Raises:
        ValueError: for an option that is not supported.

    Source: Lu et al., arXiv 2206.00927 and 2211.01095.
    """

    @functools.wraps(DPMSolverMultistepScheduler.set_timesteps)
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
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Move `sample`, (B, C, ...), one step; `timestep` counts at the first only; see the stock scheduler.

        Raises:
            ValueError: without `set_timesteps`, for a first timestep that is not one of `timesteps`, a step after the
                last, or shapes that do not fit.
        """
        if self.num_inference_steps is None:
            raise ValueError("FastDPMSolverMultistepScheduler: call set_timesteps before step")
        if self.config.variance_type in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]
        i, noise = self._place(timestep), None
        if self.config.algorithm_type.startswith("sde"):
            noise = variance_noise
            noise = draw(model_output, generator, torch.float32) if noise is None else noise.to(model_output.device)
        out, _ = self._fused(self._rows(), i - self._first, model_output, sample, noise)
        self._step_index = i + 1
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _check(self) -> None:
        super()._check()
        owner, config = type(self).__name__, self.config
        refuse(owner, config, use_flow_sigmas=False, use_dynamic_shifting=False)
        if config.solver_order not in (1, 2, 3):
            raise ValueError(f"{owner}: solver_order must be 1, 2 or 3, got {config.solver_order!r}")
        if config.thresholding and not config.algorithm_type.endswith("++"):
            raise ValueError(f"{owner}: thresholding must be False with algorithm_type={config.algorithm_type!r}")

    def _tabulate(self) -> Table:
        config, stochastic = self.config, self.config.algorithm_type.startswith("sde")
        algorithm, taylor = config.algorithm_type.removeprefix("sde-"), config.solver_type == "heun"
        path = falling_levels(type(self).__name__, self.sigmas.tolist()[self._first :])
        steps = table(config.prediction_type, clip=self._clip(), denoised=False)
        known: deque[tuple[float, Expression]] = deque(maxlen=config.solver_order)
        for order, (s, t) in zip(self._orders(len(path) - 1), itertools.pairwise(path), strict=True):
            m, noise = steps.evaluate(TARGETS[algorithm], s, keep=config.solver_order > 1), 0.0
            if s.ratio - t.ratio <= _STILL * s.ratio:
                moved = steps.x
            elif t.sigma == 0:
                moved = m
            else:
                flow = Flow.between(algorithm, s, t)
                if stochastic:
                    flow, noise = stochastic_flow(algorithm, 1.0, s, t)
                    if order == 3 and algorithm == "dpmsolver++":  # as in diffusers, where a sign is wrong
                        flow = replace(flow, weights=(*flow.weights[:2], flow.weights[2] + t.alpha))
                earlier = [((log_ratio - s.log_ratio) / flow.h, old) for log_ratio, old in known]
                if order == 1:
                    moved = flow.first(steps.x, m)
                elif order == 2:
                    moved = flow.second(steps.x, m, earlier[0], taylor)
                else:
                    moved = flow.third(steps.x, m, earlier[0], earlier[1], 0.5)
            steps.step(moved, t, noise=noise, name=f"{config.algorithm_type} {order}M")
            known.appendleft((s.log_ratio, m))
        return steps

    def _orders(self, left: int) -> list[int]:
        """The orders of the steps that are left: rising, and falling at the end where asked and where steps are few."""
        config = self.config
        few = config.lower_order_final and len(self.timesteps) < FEW_STEPS
        orders = [min(config.solver_order, i + 1) for i in range(left)]
        if few:
            orders[-2:-1] = [min(order, 2) for order in orders[-2:-1]]
        if few or config.euler_at_final or config.final_sigmas_type == "zero":
            orders[-1] = 1
        return orders

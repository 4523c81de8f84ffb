"""Resampling (RePaint): pieces of the path are walked several times; what is generated adapts to what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from fastscore._checks import wrong_type, wrong_value
from fastscore.noise import Noise
from fastscore.samplers.base import FixedStepSampler, Sampler, check_count
from fastscore.samplers.grid import CLEAN, Node, nodes
from fastscore.samplers.plan import LINEAR, Plan, Step
from fastscore.samplers.table import Table

__all__ = ["Resampling"]


class Resampling(FixedStepSampler):
    """Another sampler, every `jump` steps of which are made `resamplings` times.

    In between, the forward process leads back to where they began: ``x_t = a x_s + b z``. For hooks that replace, such
    as `Inpainting`, whose known part the unknown one has seen only once otherwise. Costs `resamplings` times the calls.

    Args:
        sampler: with fixed steps, each made from the state alone (any but multistep methods).
        resamplings: how often steps are made, >= 1.
        jump: number of steps that are made again together, >= 1.

    Raises:
        TypeError, ValueError: sampler is not of that kind, or another bad argument.

    Source: Lugmayr et al., arXiv 2201.09865 (RePaint), section 4.2 and appendix B, with 10 resamplings of every 10 of
    the 250 steps of DDPM.
    """

    def __init__(self, sampler: Sampler, *, resamplings: int = 10, jump: int = 10) -> None:
        if not isinstance(sampler, FixedStepSampler):
            wrong_type("Resampling", "sampler", "be a sampler with fixed steps", type(sampler).__name__)
        super().__init__(
            sampler.sde,
            sampler.model,
            steps=sampler.steps,
            eps=sampler.eps,
            clip=sampler.clip,
            convention=sampler.convention,
        )
        check_count("Resampling", "resamplings", resamplings, 1)
        check_count("Resampling", "jump", jump, 1)
        self.sampler, self.resamplings, self.jump = sampler, resamplings, jump
        self.start, self.norm = sampler.start, sampler.norm
        self.plan()

    def _tabulate(self, table: Table) -> None:
        self.sampler._tabulate(table)

    def _plan(self, denoised: bool) -> Plan:
        if denoised not in self._plans:
            plan = super()._plan(denoised)
            self._plans[denoised] = Plan(tuple(self._walked(plan.steps)), plan.clip)
        return self._plans[denoised]

    def _walked(self, rows: Sequence[Step]) -> Iterator[Step]:
        steps = iter(self._steps(rows))
        while piece := [row for step in islice(steps, self.jump) for row in step]:
            high, low = self._node(piece[0].t), self._node(piece[-1].t_next)
            back = Step("resampling", LINEAR, low.t, high.t, None, 1.0, high.transition(low), ())
            for time in range(self.resamplings):
                if time:
                    yield back
                yield from piece

    def _steps(self, rows: Sequence[Step]) -> list[list[Step]]:
        """The rows from one time to the next lower one."""
        steps: list[list[Step]] = [[]]
        calls = 0
        for row in rows:
            if not steps[-1]:
                calls = 0
            calls += row.label is not None
            if max(row.ages, default=-1) >= calls:
                accepted = "make every step from its state alone"
                wrong_value("Resampling", "sampler", accepted, f"a multistep method ({type(self.sampler).__name__})")
            steps[-1].append(row)
            if not row.stage and row.t_next < steps[-1][0].t:
                steps.append([])
        last = steps.pop()
        if not steps:
            wrong_value("Resampling", "sampler", "go down in time", type(self.sampler).__name__)
        steps[-1] += last
        return steps

    def _node(self, t: float) -> Node:
        return CLEAN if t == 0 else nodes(self.sde, torch.tensor([t], dtype=torch.float64))[0]

    def _first_state(self, shape: Sequence[int], noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.sampler._first_state(shape, noise, dtype, device)

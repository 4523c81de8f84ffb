"""DPM-Solver and DPM-Solver++ with fixed steps: exponential integrators of the probability-flow ODE in log-SNR."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_choice, check_count, check_number
from fastscore.samplers.dpm_solver_formulas import TARGETS, Flow, multistep_orders, singlestep_orders
from fastscore.samplers.grid import CLEAN, Node, node_at, nodes, path
from fastscore.samplers.table import Expression, Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["DPMSolverSampler"]


class DPMSolverSampler(FixedStepSampler):
    """DPM-Solver and DPM-Solver++ of order 1 to 3, singlestep and multistep, on a fixed grid.

    Order 1 is DDIM. Multistep order 3 with ``solver_type="midpoint"`` gives back the published numbers, in which the
    last term of the expansion has half its weight: it converges with order 2. With ``"taylor"`` it has order 3.

    Args:
        sde, model, eps, clip, convention: see `FixedStepSampler`.
        steps: multistep: number of steps; singlestep: number of network calls, as published.
        order: 1, 2 or 3.
        method: ``"multistep"``: one network call a step, earlier predictions are used again; ``"singlestep"``: K calls
            for a step of order K, with last steps of lower order so that there are `steps` calls; with order 3 the last
            step never has order 3; ``"singlestep_fixed"``: all steps of one order, which has to divide `steps`.
        algorithm: ``"dpmsolver++"``: the clean image is integrated; ``"dpmsolver"``: the noise.
        solver_type: ``"midpoint"`` (``"dpmsolver"`` in the published code) or ``"taylor"`` (``"heun"`` in diffusers).
        spacing: ``"log_snr"``, ``"linear"``, ``"quadratic"`` or ``"karras"``, see `fastscore.samplers.grid.time_grid`;
            or the times themselves, (steps + 1,), with `denoise` (steps,). Rising times encode: they lead from data to
            noise. Singlestep methods stop at every second or third time and have the others as inner points; with
            ``"log_snr"`` all their steps are equally long, whatever their order.
        rho: of the Karras spacing.
        lower_order_final: multistep: if there are fewer than 15 steps, the last has order 1 and the one before at most
            order 2, for stability.
        denoise: the last of the steps leads from eps to the clean image, with order 1; else the last leads to eps.
        denoise_to_zero: one more network call at eps, whose clean image is the result.
        eta: singlestep: share, 0 to 1, of the noise of ancestral sampling: a step aims below its node and noise is
            added. Inner points are even in log-SNR then.

    Source: Lu et al., arXiv 2206.00927, section 3, algorithms 1 and 2 (``"dpmsolver"``); arXiv 2211.01095, section 4,
    algorithms 1 and 2 (``"dpmsolver++"``). Grids, step lists and the other solvers of order 3 are those of their
    published code; `eta` is that of k-diffusion's dpm_fast.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 20,
        order: int = 2,
        method: str = "multistep",
        algorithm: str = "dpmsolver++",
        solver_type: str = "midpoint",
        spacing: str | Tensor = "log_snr",
        rho: float = 7.0,
        lower_order_final: bool = True,
        denoise: bool = False,
        denoise_to_zero: bool = False,
        eta: float = 0.0,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        owner = type(self).__name__
        check_count(owner, "order", order, 1)
        if order > 3:
            raise ValueError(f"{owner}: order must be 1, 2 or 3, got {order}")
        check_choice(owner, "method", method, ("multistep", "singlestep", "singlestep_fixed"))
        check_choice(owner, "algorithm", algorithm, tuple(TARGETS))
        check_choice(owner, "solver_type", solver_type, ("midpoint", "taylor"))
        if method == "singlestep_fixed" and steps % order:
            raise ValueError(
                f"{owner}: with method='singlestep_fixed', steps must be a multiple of order = {order}, got {steps}; "
                "method='singlestep' takes any number of network calls"
            )
        check_number(owner, "eta", eta, least=0.0, most=1.0)
        if eta and method == "multistep":
            raise ValueError(f"{owner}: eta needs method='singlestep' or 'singlestep_fixed', got 'multistep'")
        if denoise and denoise_to_zero:
            raise ValueError(f"{owner}: denoise=True leaves no noise for denoise_to_zero=True to remove; choose one")
        rising = (
            isinstance(spacing, Tensor) and spacing.ndim == 1 and len(spacing) > 1 and bool(spacing[0] < spacing[1])
        )
        if rising and (denoise or denoise_to_zero or eta):
            raise ValueError(f"{owner}: rising times lead to noise and exclude denoise, denoise_to_zero and eta")
        self.order, self.method, self.algorithm, self.solver_type = order, method, algorithm, solver_type
        self.spacing, self.rho, self.lower_order_final = spacing, rho, bool(lower_order_final)
        self.denoise, self.denoise_to_zero, self.eta, self._rising = bool(denoise), bool(denoise_to_zero), eta, rising
        self.start = self.plan().steps[0].t

    def _tabulate(self, table: Table) -> None:
        last = self._multistep(table) if self.method == "multistep" else self._singlestep(table)
        if self.denoise_to_zero:
            table.step(table.evaluate("denoised", last), CLEAN, name="denoise_to_zero")

    def _multistep(self, table: Table) -> Node:
        grid, taylor = self._path(self.steps), self.solver_type == "taylor"
        known: deque[tuple[float, Expression]] = deque(maxlen=self.order)
        orders = multistep_orders(self.steps, self.order, self.lower_order_final, self.denoise)
        for order, (s, t) in zip(orders, itertools.pairwise(grid), strict=True):
            m = table.evaluate(TARGETS[self.algorithm], s, keep=self.order > 1)
            flow = Flow.between(self.algorithm, s, t)
            earlier = [((log_ratio - s.log_ratio) / flow.h, old) for log_ratio, old in known]
            if order == 1:
                moved = flow.first(table.x, m)
            elif order == 2:
                moved = flow.second(table.x, m, earlier[0], taylor)
            else:
                moved = flow.third(table.x, m, earlier[0], earlier[1], 1.0 if taylor else 0.5)
            table.step(moved, t, name=f"{self.algorithm} {order}M")
            known.appendleft((s.log_ratio, m))
        return grid[-1]

    def _singlestep(self, table: Table) -> Node:
        steps = self._single_steps()
        lowest = steps[-1][-1].ratio
        for s, *inner, t in steps:
            aim = self._below(s, t, lowest)
            if self.eta:
                inner = self._between(s, aim, len(inner) + 1)
            moved = self._single_step(table, [s, *inner, aim])
            noise = t.alpha * math.sqrt(max(t.ratio**2 - aim.ratio**2, 0.0))
            table.step(t.alpha / aim.alpha * moved, t, noise=noise, name=f"{self.algorithm} {len(inner) + 1}S")
        return steps[-1][-1]

    def _single_step(self, table: Table, points: list[Node]) -> Expression:
        """The state at the last point; the network looks at all the others."""
        target, taylor = TARGETS[self.algorithm], self.solver_type == "taylor"
        x, name, (s, *inner, t) = table.x, f"{self.algorithm} {len(points) - 1}S", points
        m, flow = table.evaluate(target, s), Flow.between(self.algorithm, s, t)
        if not inner:
            return flow.first(x, m)
        table.stage(Flow.between(self.algorithm, s, inner[0]).first(x, m), inner[0], name=name)
        first = table.evaluate(target, inner[0])
        to_first = inner[0].log_ratio - s.log_ratio
        if len(inner) == 1:
            return flow.second(x, m, (to_first / flow.h, first), taylor)
        part = Flow.between(self.algorithm, s, inner[1])
        table.stage(part.second(x, m, (to_first / part.h, first), taylor=True), inner[1], name=name)
        second = (part.h / flow.h, table.evaluate(target, inner[1]))
        if taylor:
            return flow.third(x, m, (to_first / flow.h, first), second, 1.0)
        return flow.second(x, m, second, taylor=True)

    def _single_steps(self) -> list[list[Node]]:
        """Of every step its start, its inner points and its end."""
        orders = singlestep_orders(self.steps, self.order, self.method == "singlestep_fixed", self.denoise)
        if isinstance(self.spacing, str) and self.spacing == "log_snr":
            ends = itertools.pairwise(self._path(len(orders)))
            return [[s, *self._between(s, t, order), t] for order, (s, t) in zip(orders, ends, strict=True)]
        grid, stops = self._path(self.steps), [0, *itertools.accumulate(orders)]
        return [grid[i : j + 1] for i, j in itertools.pairwise(stops)]

    def _path(self, steps: int) -> list[Node]:
        owner, spacing = type(self).__name__, self.spacing
        if self._rising and isinstance(spacing, Tensor):
            grid = path(owner, self.sde, spacing.flip(0), steps, self.eps, self.rho)[::-1]
        else:
            grid = path(owner, self.sde, spacing, steps, self.eps, self.rho, clean=self.denoise)
        if any(node.sigma == 0 for node in grid if node is not CLEAN):
            raise ValueError(f"{owner}: there is no noise at a time of spacing; leave it out, and set denoise=True")
        return grid

    def _between(self, s: Node, t: Node, parts: int) -> list[Node]:
        """The points that divide the way from s to t into parts equal in log-SNR."""
        if parts == 1:
            return []
        first, last = 2 * s.log_ratio, 2 * t.log_ratio
        log_snr = torch.tensor([first + (last - first) * i / parts for i in range(1, parts)], dtype=torch.float64)
        return nodes(self.sde, self.sde.inverse_log_snr(log_snr))

    def _below(self, s: Node, t: Node, lowest: float) -> Node:
        """Where a step to t aims, so that noise, in the share eta, brings it to t; not below the last node."""
        if self.eta == 0 or t.ratio <= lowest:
            return t
        added = self.eta * t.ratio * math.sqrt(1 - (t.ratio / s.ratio) ** 2)
        ratio = math.sqrt(t.ratio**2 - added**2)
        return node_at(self.sde, max(ratio, lowest))

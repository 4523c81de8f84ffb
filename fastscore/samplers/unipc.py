"""UniPC: a predictor and a corrector of the same form, at one network call a step."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_choice, check_count
from fastscore.samplers.dpm_solver_formulas import TARGETS, Flow
from fastscore.samplers.grid import Node, path
from fastscore.samplers.table import Expression, Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["UniPCSampler", "unipc_steps"]


class UniPCSampler(FixedStepSampler):
    """UniPC of order 1 to 3: multistep, and every step is corrected by the network's look at where it led.

    Predictor and corrector start from the same state and weigh it alike, so the corrected state is the predicted one
    plus a combination of predictions, which becomes part of the next row. The states that hooks and callbacks see are
    predicted ones, at which the network looks. The last step is not corrected: that would be another network call.

    The order of convergence is `order` without the corrector, and `order` + 1 with it, where the first steps, which
    have lower order, are small.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        order: 1, 2 or 3 of the predictor.
        variant: B(h) of the paper: ``"bh1"``: h; ``"bh2"``: e^h - 1. They differ in the predictor of order 2 and the
            corrector of order 1, whose weight is 1/2 as in the published code.
        predict_x0: the clean image is integrated; else the noise.
        disable_corrector: numbers of the steps, from 0, whose result is not corrected; ``range(steps)`` leaves UniP.
        lower_order_final: the last step has order 1, the one before at most order 2.
        spacing: ``"log_snr"``, ``"linear"``, ``"quadratic"`` or ``"karras"``, see
            `fastscore.samplers.grid.time_grid`, or the times themselves: as many as there are steps; without `denoise`
            one more.
        rho: exponent of the Karras grid, at least 1.
        denoise: the last step leads from eps to the clean image, with order 1; else the last step leads to eps.

    Source: Zhao et al., arXiv 2302.04867, algorithms 5 to 8.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 20,
        order: int = 2,
        variant: str = "bh2",
        predict_x0: bool = True,
        disable_corrector: Collection[int] = (),
        lower_order_final: bool = True,
        spacing: str | Tensor = "log_snr",
        rho: float = 7.0,
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        check_count("UniPCSampler", "order", order, 1)
        if order > 3:
            raise ValueError(f"UniPCSampler: order must be 1, 2 or 3, got {order}")
        check_choice("UniPCSampler", "variant", variant, ("bh1", "bh2"))
        if not all(isinstance(i, int) and 0 <= i < steps for i in disable_corrector):
            raise ValueError(
                f"UniPCSampler: disable_corrector must hold numbers of steps, 0 to {steps - 1}, got {disable_corrector}"
            )
        self.order, self.variant, self.predict_x0 = order, variant, bool(predict_x0)
        self.disable_corrector, self.lower_order_final = frozenset(disable_corrector), bool(lower_order_final)
        self.denoise = bool(denoise)
        self._path = path("UniPCSampler", sde, spacing, steps, self.eps, rho, clean=self.denoise)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        unipc_steps(
            table, self._path, self.order, self.variant, self.predict_x0, self.disable_corrector, self.lower_order_final
        )


def unipc_steps(
    table: Table, grid: Sequence[Node], order: int, variant: str, predict_x0: bool, disable_corrector: Collection[int],
    lower_order_final: bool,
) -> None:  # fmt: skip
    """Write down the steps along a grid of nodes, of which the last two may be the same; see `UniPCSampler`."""
    algorithm, steps = "dpmsolver++" if predict_x0 else "dpmsolver", len(grid) - 1
    known: deque[tuple[float, Expression]] = deque(maxlen=order + 1)
    before: _Increment | None = None
    for i, (s, t) in enumerate(itertools.pairwise(grid)):
        m = table.evaluate(TARGETS[algorithm], s, keep=True)
        corrected = table.x
        if before is not None:
            corrected = table.x + before.corrected(m) - before.predicted()
        known.appendleft((s.log_ratio, m))
        if t.ratio == s.ratio:
            table.step(corrected, t, name="unipc 0")
            break
        now = min(order, i + 1, steps - i if lower_order_final else order)
        flow = Flow.between(algorithm, s, t)
        moved = flow.first(corrected, m)
        if t.sigma == 0:
            table.step(moved, t, name="unipc 1")
            break
        z, scale = (-flow.h, t.alpha) if predict_x0 else (flow.h, t.sigma)
        increment = _Increment(z, scale, list(known)[:now], variant)
        table.step(moved + increment.predicted(), t, name=f"unipc {now}")
        before = None if i in disable_corrector else increment


class _Increment:
    """What a step adds to its first-order part: ``-scale B(h) sum_k rho_k D_k`` (eq. 3 and 9).

    Args:
        z, scale: -h and alpha where the clean image is integrated, h and sigma where the noise is; at the step's end.
        known: log(alpha / sigma) and prediction at the start and at the points before it, as many as the order.
    """

    def __init__(self, z: float, scale: float, known: list[tuple[float, Expression]], variant: str) -> None:
        (start, self._m), *earlier = known
        self._z, self._b = z, z if variant == "bh1" else math.expm1(z)
        self._weight = -scale * self._b
        self._places = [(log_ratio - start) / abs(z) for log_ratio, _ in earlier]
        self._slopes = [(m - self._m) / r for r, (_, m) in zip(self._places, earlier, strict=True)]

    def predicted(self) -> Expression:
        return self._sum(self._places, self._slopes)

    def corrected(self, m: Expression) -> Expression:
        """With the prediction m at t."""
        return self._sum([*self._places, 1.0], [*self._slopes, m - self._m])

    def _sum(self, places: list[float], slopes: list[Expression]) -> Expression:
        total = Expression({})
        for rho, slope in zip(self._rhos(places), slopes, strict=True):
            total = total + self._weight * rho * slope
        return total

    def _rhos(self, places: list[float]) -> list[float]:
        """``sum_k rho_k r_k^(j - 1) = j! phi_(j + 1)(z) z / B``, j = 1 ... n; but 1/2 for n = 1."""
        if len(places) < 2:
            return [0.5] * len(places)
        phi, factorial, right = math.expm1(self._z) / self._z - 1, 1.0, []
        for j in range(1, len(places) + 1):
            right.append(factorial * phi / self._b)
            factorial *= j + 1
            phi = phi / self._z - 1 / factorial
        matrix = torch.tensor([[r**j for r in places] for j in range(len(places))], dtype=torch.float64)
        solution: list[float] = torch.linalg.solve(matrix, torch.tensor(right, dtype=torch.float64)).tolist()
        return solution

"""Linear multistep methods for the probability-flow ODE, in the noise level."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_count
from fastscore.samplers.grid import path
from fastscore.samplers.table import Expression, Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["LMSSampler", "adams_bashforth"]


class LMSSampler(FixedStepSampler):
    """Adams-Bashforth methods of order 1 to 4: one network call a step, earlier noise predictions are used again.

    In ``y = x / alpha`` and ``s = sigma / alpha`` the probability-flow ODE of every SDE here is ``dy/ds = eps``. The
    polynomial through the last `order` predictions of eps is integrated exactly over the step. The first step is
    Euler's and the next ones have rising order: the order of convergence shows in full where the grid starts with small
    steps, and elsewhere until the error of the first step, of second order, is the largest.

    Args:
        sde, model, steps, eps, clip, convention: see `FixedStepSampler`.
        order: 1 (Euler, DDIM) to 4.
        spacing: ``"karras"``, ``"log_snr"``, ``"linear"`` or ``"quadratic"``, see
            `fastscore.samplers.grid.time_grid`, or the times themselves: as many as there are steps; without `denoise`
            one more.
        rho: exponent of the Karras grid, at least 1.
        denoise: the last step leads from eps to the clean image, s = 0, with `order`, too; else it leads to eps.

    Source: Hairer, Nørsett and Wanner 1993, sections III.1 and III.5; the variable is that of Karras et al.,
    arXiv 2206.00364, as in k-diffusion's lms.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 20,
        order: int = 4,
        spacing: str | Tensor = "karras",
        rho: float = 7.0,
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        check_count("LMSSampler", "order", order, 1)
        if order > 4:
            raise ValueError(f"LMSSampler: order must be 1, 2, 3 or 4, got {order}")
        self.order, self.denoise = order, bool(denoise)
        self._path = path("LMSSampler", sde, spacing, steps, self.eps, rho, clean=self.denoise)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        levels = [node.ratio for node in self._path]
        slopes: deque[Expression] = deque(maxlen=self.order)
        for i, (node, after) in enumerate(zip(self._path, self._path[1:], strict=False)):
            slopes.appendleft(table.evaluate("noise", node, keep=self.order > 1))
            weights = adams_bashforth(levels[max(i + 1 - self.order, 0) : i + 1][::-1], after.ratio)
            y = table.x / node.alpha
            for weight, slope in zip(weights, slopes, strict=True):
                y = y + weight * slope
            table.step(after.alpha * y, after, name=f"adams_bashforth {len(weights)}")


def adams_bashforth(levels: Sequence[float], end: float) -> list[float]:
    """Weights of the slopes at the levels, latest first, whose sum is their polynomial's integral from there to `end`.

    The weight of a slope is the integral of its Lagrange polynomial (Hairer, Nørsett and Wanner 1993, eq. III.1.4).
    """
    h = end - levels[0]
    points = [(level - levels[0]) / h for level in levels]  # 0 is the latest, 1 the end
    weights = []
    for j, own in enumerate(points):
        polynomial = [1.0]  # coefficients, constant first
        for k, other in enumerate(points):
            if k != j:
                shifted = [0.0, *polynomial]
                polynomial = [
                    (up - other * low) / (own - other) for up, low in zip(shifted, [*polynomial, 0.0], strict=True)
                ]
        weights.append(h * sum(c / (power + 1) for power, c in enumerate(polynomial)))
    return weights

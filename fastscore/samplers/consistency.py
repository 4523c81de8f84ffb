"""Sampling of consistency models: in one step, or in several with fresh noise between."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor

from fastscore.samplers.base import FixedStepSampler
from fastscore.samplers.grid import path
from fastscore.samplers.table import Table
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["ConsistencySampler"]


class ConsistencySampler(FixedStepSampler):
    """Applies a consistency function f(x, t), which leads from any time of a trajectory to its end at `eps`.

    ``x = f(x_1, 1)``; then, for every further time t of the path, noise is added that leads from eps to t, and f is
    applied again: ``x = f(x + sqrt(t^2 - eps^2) z, t)`` in the noise levels of a VE SDE, with the factor
    ``alpha_t / alpha_eps`` of x and the variance of the forward process from eps to t in general.

    Args:
        sde, eps: see `Sampler`.
        model: f, called as ``f(x, labels)``; by default `convention` says that it returns the clean image and is
            labeled by sigma / alpha. Boundary conditions such as ``c_skip x + c_out F`` are its own business.
        steps: number of times at which f is applied.
        spacing: the times, see `fastscore.samplers.grid.time_grid`: of the ``steps + 1`` times, f is applied at all
            but the last, which is that of f's result.
        rho: exponent of ``"karras"``, at least 1.
        clip: the result of f is clipped to [-clip, clip] at every call; None: it is not.
        convention: by default ``model.convention``, or ``Convention("denoised", "sigma")``.

    Source: Song et al., arXiv 2303.01469, algorithm 1.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int = 1,
        spacing: str | Tensor = "karras",
        rho: float = 7.0,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        convention = convention or getattr(model, "convention", None) or Convention("denoised", "sigma")
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        self._path = path("ConsistencySampler", sde, spacing, steps, self.eps, rho)
        self.start = self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        end = self._path[-1]
        for node, after in itertools.pairwise(self._path):
            a, s = after.transition(end)  # no noise in the last step, where after is end
            table.step(a * table.evaluate("denoised", node), after, noise=s, name="consistency")

"""Langevin dynamics, at one noise level and annealed through many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore.noise import Noise
from fastscore.samplers.base import FixedStepSampler, check_choice, check_count, check_number
from fastscore.samplers.grid import CLEAN, nodes, path
from fastscore.samplers.table import Table
from fastscore.score import Convention
from fastscore.sde import SDE, VESDE

__all__ = ["AnnealedLangevinSampler", "LangevinSampler"]


class LangevinSampler(FixedStepSampler):
    """Langevin dynamics at one time: ``x <- x + step_size score + sqrt(2 step_size) z``.

    The law of the state comes near the marginal of the SDE at that time; what remains after many steps is a bias
    that falls with the step size. Well-separated modes are left rarely.

    Args:
        sde, model, steps, clip, convention: see `FixedStepSampler`.
        step_size: in squared units of the state; the variance of the narrowest direction is a scale above which
            the iteration diverges.
        time: the time whose score is followed, in (0, 1]; by default the SDE's eps.

    Source: Song and Ermon, arXiv 1907.05600, eq. 4.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        step_size: float,
        steps: int = 1000,
        time: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, clip=clip, convention=convention)
        check_number("LangevinSampler", "step_size", step_size, above=0.0)
        time = self.eps if time is None else time
        check_number("LangevinSampler", "time", time, above=0.0, most=sde.T)
        self.step_size, self.start = float(step_size), float(time)
        self.plan()

    def _tabulate(self, table: Table) -> None:
        node = nodes(self.sde, torch.tensor([self.start], dtype=torch.float64))[0]
        for _ in range(self.steps):
            moved = table.x + self.step_size * table.evaluate("score", node)
            table.step(moved, node, noise=math.sqrt(2 * self.step_size), name="langevin")


class AnnealedLangevinSampler(FixedStepSampler):
    """Langevin dynamics at falling noise levels, as NCSN and NCSNv2 sample.

    At each of L levels, `inner_steps` times ``x <- x + e_i score + sqrt(2 e_i) z`` with
    ``e_i = step_size (sigma_i / sigma_L)^2``. For SDEs whose alpha is not 1 this happens in ``y = x / alpha`` with the
    levels ``sigma / alpha``. `PCSampler` has corrector ``"ald"``, whose steps follow from a signal-to-noise ratio.

    Published for CIFAR-10 in [0, 1] (NCSNv2): 232 levels from 50 to 0.01, 5 steps each, step size 6.2e-6. A step size
    goes with its levels: neighbors must overlap, ``step_size / sigma_L^2`` stays well below 1, and ``inner_steps
    step_size / sigma_L^2`` decides how close each level comes to equilibrium (arXiv 2006.09011, section 3).

    Args:
        sde, model, eps, clip, convention: see `FixedStepSampler`. A network that takes the index of the level has
            the convention ``Convention("score", "noise_index", L)``.
        step_size: e_L, the step at the last level, > 0.
        steps: number of levels L.
        inner_steps: steps at each level, >= 1.
        spacing: times of the levels: ``"log_snr"``, levels in geometric progression as published (for a VESDE from
            sigma_max to sigma_min unless eps is given), another one (see `ODESampler`), or a falling tensor of L times.
        denoise: replace the result by the clean image that the network predicts at the last level (NCSNv2).
        initial: the first state, where only its shape is given: ``"prior"`` or ``"uniform"`` in [0, 1], as published.

    Source: Song and Ermon, arXiv 1907.05600, algorithm 1; arXiv 2006.09011, algorithm 1.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        step_size: float,
        steps: int = 232,
        inner_steps: int = 5,
        spacing: str | Tensor = "log_snr",
        denoise: bool = True,
        initial: str = "prior",
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=steps, eps=eps, clip=clip, convention=convention)
        check_count("AnnealedLangevinSampler", "inner_steps", inner_steps, 1)
        check_choice("AnnealedLangevinSampler", "initial", initial, ("prior", "uniform"))
        check_number("AnnealedLangevinSampler", "step_size", step_size, above=0.0)
        self.step_size, self.inner_steps = float(step_size), inner_steps
        self.denoise, self.initial = bool(denoise), initial
        end = 0.0 if eps is None and isinstance(sde, VESDE) else self.eps
        self._levels = path("AnnealedLangevinSampler", sde, spacing, steps, end, clean=True)[:-1]
        self.start = self._levels[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        last = self._levels[-1]
        for node, after in zip(self._levels, [*self._levels[1:], last], strict=True):
            step = self.step_size * (node.ratio / last.ratio) ** 2
            for i in range(self.inner_steps):
                y = table.x / node.alpha + step * node.alpha * table.evaluate("score", node)
                to = after if i == self.inner_steps - 1 else node
                table.step(to.alpha * y, to, noise=to.alpha * math.sqrt(2 * step), name="langevin")
        if self.denoise:
            table.step(table.evaluate("denoised", last), CLEAN, name="denoise")

    def _first_state(self, shape: Sequence[int], noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.initial == "prior":
            return super()._first_state(shape, noise, dtype, device)
        exact = dtype if dtype == torch.float64 else torch.float32
        return torch.special.ndtr(noise.normal(shape, dtype=exact, device=device, draw=0)).to(dtype)

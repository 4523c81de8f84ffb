"""Ancestral sampling of denoising diffusion probabilistic models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from torch import Tensor

from fastscore.samplers.base import FixedStepSampler, check_choice
from fastscore.samplers.grid import Node
from fastscore.samplers.table import Expression, Table
from fastscore.samplers.timesteps import level_path
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["DDPMSampler", "posterior_mean"]


class DDPMSampler(FixedStepSampler):
    """Ancestral sampling over any selection of the noise levels.

    From t to s < t the state is drawn from ``q(x_s | x_t, x_0)`` with the clean image that the network predicts in
    place of x_0. With ``x_t = a x_s + b z`` the forward process from s to t, its mean is
    ``a sigma_s^2 / sigma_t^2 x_t + alpha_s b^2 / sigma_t^2 x_0``. Without noise in the last step to the clean image.

    Args:
        sde, model, eps, clip, convention: see `FixedStepSampler`. With `clip`, the mean is that of the clipped image.
        steps: number of steps; by default as many as `spacing` names, else all levels of a `DiscreteVPSDE`, else 1000.
        spacing: which levels of a `DiscreteVPSDE` the network sees: ``"linspace"``, ``"leading"``, ``"trailing"``,
            ``"uniform"``, ``"quad"``, section counts such as ``"25"``, ``"10,15,5"`` or ``"ddim25"``, or the indices as
            a falling integer tensor, see `fastscore.samplers.timesteps`. For every SDE: a grid of times, ``"linear"``,
            ``"quadratic"``, ``"log_snr"`` or ``"karras"``, or a falling floating-point tensor, as many as there are
            steps; without `denoise` one more. By default ``"trailing"`` on levels, else ``"linear"``.
        offset: added to the indices of ``"leading"``.
        variance: of a step: ``"fixed_small"``: that of q, ``b^2 sigma_s^2 / sigma_t^2``; ``"fixed_large"``: ``b^2``;
            ``"learned_range"``: between the two in the logarithm, at ``(v + 1) / 2`` of the way, where the network
            returns v in C channels after the first C.
        denoise: the last step leads to the clean image; else to `eps`, with noise.

    Source: Ho et al., arXiv 2006.11239, eq. 6, 7 and 11; ``"learned_range"``: Nichol and Dhariwal, arXiv 2102.09672,
    eq. 15.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int | None = None,
        spacing: str | Tensor | None = None,
        offset: int = 0,
        variance: str = "fixed_small",
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=1 if steps is None else steps, eps=eps, clip=clip, convention=convention)
        check_choice("DDPMSampler", "variance", variance, ("fixed_small", "fixed_large", "learned_range"))
        self.variance, self.denoise = variance, bool(denoise)
        every = sde.num_timesteps if isinstance(sde, DiscreteVPSDE) else 1000
        self._path = level_path(
            "DDPMSampler", sde, self.convention, spacing, steps,
            default_steps=every, offset=offset, end=self.eps, clean=self.denoise,
        )  # fmt: skip
        self.steps, self.start = len(self._path) - 1, self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        for node, after in itertools.pairwise(self._path):
            mean, b = posterior_mean(table, node, after)
            exponent, noise = None, b if self.variance == "fixed_large" else b * after.sigma / node.sigma
            if after.sigma == 0:
                noise = 0.0
            if self.variance == "learned_range":  # log std = mean of both logs + v times half their distance
                exponent = 0.0
                if after.sigma > 0:
                    noise, exponent = b * math.sqrt(after.sigma / node.sigma), 0.5 * math.log(node.sigma / after.sigma)
            table.step(mean, after, noise=noise, exponent=exponent, name="ddpm")


def posterior_mean(table: Table, node: Node, after: Node) -> tuple[Expression, float]:
    """Mean of ``q(x_s | x_t, x_0)`` from a node t to the node s after it, and b of ``x_t = a x_s + b z``."""
    a, b = node.transition(after)
    clean = table.evaluate("denoised", node)
    return a * (after.sigma / node.sigma) ** 2 * table.x + after.alpha * (b / node.sigma) ** 2 * clean, b

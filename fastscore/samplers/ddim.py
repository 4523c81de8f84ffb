"""Denoising diffusion implicit models: sampling and encoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fastscore.noise import Noise
from fastscore.samplers.base import FixedStepSampler
from fastscore.samplers.grid import Node
from fastscore.samplers.table import Expression, Table
from fastscore.samplers.timesteps import level_path
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["DDIMInverseSampler", "DDIMSampler", "ddim_step"]


class DDIMSampler(FixedStepSampler):
    """The non-Markovian family between the probability-flow ODE and ancestral sampling, over any noise levels.

    From t to s < t: ``x_s = alpha_s x_0 + sqrt(sigma_s^2 - c^2) noise + c z`` with the clean image x_0 and the noise
    that the network predicts, and ``c = eta sigma_s b / sigma_t`` where ``x_t = a x_s + b z`` is the forward process
    from s to t. ``eta=0`` is the first-order exponential integrator of the probability-flow ODE, for every SDE.

    Args:
        sde, model, eps, clip, convention: see `FixedStepSampler`.
        steps: number of steps; by default as many as `spacing` names, else 50.
        spacing, offset: see `DDPMSampler`.
        eta: in [0, 1]; 0: no noise, 1: `DDPMSampler` with ``"fixed_small"``; or ``"sigma_hat"``: the direction of 1
            and noise of standard deviation b, as `DDPMSampler` with ``"fixed_large"``.
        clipped_noise: the noise is that of the clipped image, so that ``x_t = alpha_t x_0 + sigma_t noise``
            (guided-diffusion; diffusers' ``use_clipped_model_output=True``); else what the network predicts (diffusers'
            default), at the price of one more pass over the state. Hooks change the image alike.
        denoise: the last step leads to the clean image (diffusers' ``set_alpha_to_one=True``); else to `eps`, the
            first level.

    Source: Song et al., arXiv 2010.02502, eq. 12 and 16; ``"sigma_hat"``: section 5.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int | None = None,
        spacing: str | Tensor | None = None,
        offset: int = 0,
        eta: float | str = 0.0,
        clipped_noise: bool = True,
        denoise: bool = True,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=1 if steps is None else steps, eps=eps, clip=clip, convention=convention)
        if eta != "sigma_hat" and (isinstance(eta, str) or not 0 <= eta <= 1):
            raise ValueError(f"DDIMSampler: eta must lie in [0, 1] or be 'sigma_hat', got {eta!r}")
        self.eta = eta if isinstance(eta, str) else float(eta)
        self.clipped_noise, self.denoise = bool(clipped_noise), bool(denoise)
        self._path = level_path(
            "DDIMSampler", sde, self.convention, spacing, steps,
            default_steps=50, offset=offset, end=self.eps, clean=self.denoise,
        )  # fmt: skip
        self.steps, self.start = len(self._path) - 1, self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        for node, after in itertools.pairwise(self._path):
            ddim_step(table, node, after, self.eta, clipped_noise=self.clipped_noise)


class DDIMInverseSampler(FixedStepSampler):
    """Encodes images: `DDIMSampler` with ``eta=0, denoise=False`` backwards, from data to noise.

    ``sample(images)`` takes the images as the state at `eps`, the first level, and returns the latents at the first
    time of the path, from which `DDIMSampler` on the same path leads back to them, up to the error of the steps.

    Args:
        sde, model, eps, clip, convention: see `FixedStepSampler`.
        steps, spacing, offset: see `DDIMSampler`; one step less where `spacing` visits the first level itself.

    Source: Song et al., arXiv 2010.02502, section 4.3.
    """

    def __init__(
        self,
        sde: SDE,
        model: Callable[[Tensor, Tensor], Tensor],
        *,
        steps: int | None = None,
        spacing: str | Tensor | None = None,
        offset: int = 0,
        eps: float | None = None,
        clip: float | None = None,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(sde, model, steps=1 if steps is None else steps, eps=eps, clip=clip, convention=convention)
        owner = "DDIMInverseSampler"
        falling = level_path(
            owner, sde, self.convention, spacing, steps,
            default_steps=50, offset=offset, end=self.eps, clean=False,
        )  # fmt: skip
        if falling[-1].t == falling[-2].t:
            falling.pop()
        if len(falling) < 2:
            raise ValueError(f"{owner}: spacing={spacing!r} must visit more than the first level")
        self._path = falling[::-1]
        self.steps, self.start = len(self._path) - 1, self._path[0].t
        self.plan()

    def _tabulate(self, table: Table) -> None:
        for node, after in itertools.pairwise(self._path):
            clean, noise = _predictions(table, node, clipped=True)
            table.step(after.alpha * clean + after.sigma * noise, after, name="ddim inverse")

    def _start(
        self, shape_or_latent: Sequence[int] | Tensor, seed: int, noise: Noise | None, *where: Any
    ) -> tuple[Tensor, Noise]:
        if not isinstance(shape_or_latent, Tensor):
            raise TypeError(
                f"DDIMInverseSampler: images must be a tensor of shape (B, ...), got {type(shape_or_latent).__name__}"
            )
        return super()._start(shape_or_latent, seed, noise, *where)


def ddim_step(table: Table, node: Node, after: Node, eta: float | str, *, clipped_noise: bool) -> None:
    """Write down the step from a node to the one after it."""
    share = 1.0 if isinstance(eta, str) else eta
    a, b = node.transition(after)
    clean, noise = _predictions(table, node, clipped=clipped_noise)
    # sigma_s^2 - c^2 = sigma_s^2 (1 - eta^2 (1 - (a sigma_s / sigma_t)^2)), in the form that does not cancel
    direction = after.sigma * math.sqrt(1 - share * share + (share * a * after.sigma / node.sigma) ** 2)
    scale = share * after.sigma * b / node.sigma
    if eta == "sigma_hat" and after.sigma > 0:
        scale = b
    table.step(after.alpha * clean + direction * noise, after, noise=scale, name="ddim")


def _predictions(table: Table, node: Node, *, clipped: bool) -> tuple[Expression, Expression]:
    """The clean image, and the noise that the state holds beside it or, if not `clipped`, beside the network's own."""
    clean = table.evaluate("denoised", node)
    beside = clean if clipped else table.untouched("denoised")
    return clean, (table.x - node.alpha * beside) / node.sigma

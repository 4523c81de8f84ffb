"""The noise of k-diffusion's samplers: torch's generator in its order of draws, a caller's function, or a path."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.noise import Noise, PhiloxNoise
from fastscore.samplers.plan import Plan

__all__ = ["BrownianNoise", "NoiseSampler", "SampledNoise", "seeded"]

NoiseSampler = Callable[[Tensor, Tensor], Tensor]  # (sigma, sigma_next), 0-d each, to noise like the state


def seeded() -> PhiloxNoise:
    """Counter-based noise whose seed is drawn from torch's generator, as that of k-diffusion's Brownian tree is."""
    return PhiloxNoise(int(torch.randint(0, 2**63 - 1, ()).item()))


class _Normals(Noise):
    """Normals alone."""

    def rademacher(self, shape: Sequence[int], **options: object) -> Tensor:
        raise TypeError(f"{type(self).__name__} has no random signs")


class SampledNoise(_Normals):
    """Noise that is drawn like a state, one after another.

    Args:
        owner: whom an error is reported for.
        like: the state (B, ...).
        sampler: asked for the noise; None: torch's generator.
        ends: of every row of the plan, the levels between which its noise lies.
        scale: factor of the noise.
    """

    def __init__(
        self,
        owner: str,
        like: Tensor,
        sampler: NoiseSampler | None,
        ends: Sequence[tuple[Tensor, Tensor]] = (),
        scale: float = 1.0,
    ) -> None:
        self.owner, self.like, self.sampler, self.ends, self.scale = owner, like, sampler, ends, scale

    def normal(self, shape: Sequence[int], *, draw: int = 0, **options: object) -> Tensor:
        if self.sampler is None:
            z = torch.randn_like(self.like)
        else:
            z = self.sampler(*self.ends[draw - 1])
            _checks.is_state(self.owner, "what noise_sampler returns", z)
            z = z.to(self.like.dtype)
            _checks.matches(self.owner, "what noise_sampler returns", z, self.like)
        return z if self.scale == 1 else z * self.scale


class BrownianNoise(_Normals):
    """Increments of a Brownian motion in sigma, over their standard deviations, drawn by counters.

    A row that makes a point within a step has the increment up to that point, the row that ends the step that of the
    whole step: their correlation is the root of the part of the way in sigma that they share.

    Args:
        source: draws independent normals.
        plan: says which rows are points within a step.
        ways: of every row, how far in sigma it leads from where its step begins.
    """

    def __init__(self, source: PhiloxNoise, plan: Plan, ways: Sequence[float]) -> None:
        self.source, self.plan, self.ways = source, plan, ways
        self._within: Tensor | None = None

    def normal(self, shape: Sequence[int], *, draw: int = 0, **options: object) -> Tensor:
        z, row = self.source.normal(shape, draw=draw, **options), draw - 1  # type: ignore[arg-type]
        if self.plan.steps[row].stage:
            self._within = z
        elif self._within is not None:
            shared = self.ways[row - 1] / self.ways[row]
            z = math.sqrt(shared) * self._within + math.sqrt(1 - shared) * z
            self._within = None
        return z

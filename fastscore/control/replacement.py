"""Generation by replacement: what is known of the state is that of the known image, noised to its time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype, same_device, wrong_value
from fastscore.ops import linear_step
from fastscore.samplers.hooks import Hook, Moment

__all__ = ["Replacement", "per_row"]


class Replacement(Hook, ABC):
    """Before every step the known part of the state becomes that of ``alpha x_0 + sigma z``; at the end, that of x_0.

    The part is linear in the image, so of the noised image it is ``alpha known + sigma part(z)``. The rest of the state
    starts from the prior and is left to the sampler, its final denoising included. Several such hooks noise by the same
    z.

    Source: Song et al., arXiv 2011.13456, appendix I.2 and I.3. The published code noises the known part to the time of
    the step before, and its final denoising has no effect on the unknown part; here both are as the paper has them.
    """

    known_name: str  # of the argument, for messages

    def __init__(self, known: Tensor) -> None:
        self.known = known

    @abstractmethod
    def part(self, x: Tensor) -> Tensor:
        """The known part of x, shaped like what is known, in the dtype that x is computed in."""

    @abstractmethod
    def lift(self, part: Tensor) -> Tensor:
        """An image with such a part, and nothing else; or what broadcasts to it."""

    def before_step(self, x: Tensor, moment: Moment) -> Tensor:
        name = type(self).__name__
        known = moment.of_rows(self.known, f"{name}: {self.known_name}")
        same_device(name, self.known_name, known, x, "the state")
        alpha, sigma = moment.sde.marginal(moment.t)
        rows = torch.stack((torch.ones_like(sigma), -sigma), -1).to(accumulation_dtype(x.dtype))
        part = self.part(linear_step(x, (), rows, **moment.drawn(x)))  # of x - sigma z
        if known.shape[1:] != part.shape[1:]:
            accepted = f"have the shape of the known part of the state, {tuple(part.shape)}, or one row of it"
            wrong_value(name, self.known_name, accepted, tuple(self.known.shape))
        return x.add_(self.lift(per_row(alpha, part) * known - part))

    def at_end(self, samples: Tensor) -> Tensor:
        return (samples + self.lift(self.known - self.part(samples))).to(samples.dtype)


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """A value (B,) in the dtype that x is computed in, so that it multiplies x (B, ...)."""
    return value.to(accumulation_dtype(x.dtype)).reshape(-1, *[1] * (x.ndim - 1))

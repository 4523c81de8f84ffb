"""What generation by replacement shares: the known part of the state is that of the known image, noised to its time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fastscore._checks import accumulation_dtype, same_device, wrong_value
from fastscore.samplers.hooks import Hook, Moment

__all__ = ["Replacement", "per_row"]


class Replacement(Hook, ABC):
    """Before every step the known part of the state becomes ``alpha known + sigma z``; at the end it is `known` itself.

    The unknown part starts from the prior and is left to the sampler, its final denoising included. Several such hooks
    noise by the same z.

    Source: Song et al., arXiv 2011.13456, appendix I.2. The published code noises the known part to the time of the
    step before, and its final denoising has no effect on the unknown part; here both are as the paper has them.
    """

    known_name: str  # of the argument, for messages

    def __init__(self, known: Tensor) -> None:
        self.known = known

    @abstractmethod
    def part(self, x: Tensor) -> Tensor:
        """The known part of x, shaped like the known image."""

    @abstractmethod
    def put(self, x: Tensor, part: Tensor, moment: Moment | None) -> Tensor:
        """x with another known part, of the rows of the moment; None: of the whole batch."""

    def before_step(self, x: Tensor, moment: Moment) -> Tensor:
        name = f"{type(self).__name__}: {self.known_name}"
        known = moment.of_rows(self.known, name)
        z = self.part(moment.normal(x))
        if known.shape[1:] != z.shape[1:]:
            accepted = f"have the shape of the known part of the state, {tuple(z.shape)}, or one row of it"
            wrong_value(type(self).__name__, self.known_name, accepted, tuple(self.known.shape))
        same_device(type(self).__name__, self.known_name, known, x, "the state")
        alpha, sigma = (per_row(value, x) for value in moment.sde.marginal(moment.t))
        return self.put(x, alpha * known + sigma * z, moment)

    def at_end(self, samples: Tensor) -> Tensor:
        return self.put(samples, self.known, None)


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """A value (B,) in the dtype that x is computed in, so that it multiplies x (B, ...)."""
    return value.to(accumulation_dtype(x.dtype)).reshape(-1, *[1] * (x.ndim - 1))

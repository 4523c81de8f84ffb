"""Progressive generation: what the network takes for the clean image on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore.samplers.hooks import Hook, Moment

__all__ = ["ProgressiveGeneration"]

_SLACK = 1e-9  # a time of a grid may be rounded


class ProgressiveGeneration(Hook):
    """Keeps the clean images that the network predicts: of every sample, when its time first falls to given times.

    After other hooks it sees what they have made of the images. Steps that an adaptive sampler rejects count, too.
    Costs a pass over `images` per network call.

    Args:
        times: (n,), finite, commonly falling from 1. For a time before which sampling ends, such as 0, the sample
            itself is kept.

    Attributes:
        images: (n, B, ...), of the last run, once it is done.

    Raises:
        ValueError: times are not numbers (n,).

    Source: Ho et al., arXiv 2006.11239, section 4.3.
    """

    def __init__(self, times: Sequence[float] | Tensor) -> None:
        self.times = torch.as_tensor(times, dtype=torch.float64)
        if self.times.ndim != 1 or not len(self.times) or not bool(torch.isfinite(self.times).all()):
            raise ValueError(f"ProgressiveGeneration: times must be finite numbers (n,), n >= 1, got {times!r}")
        self.images = torch.empty(0)
        self._seen: Tensor | None = None  # bool (n, B), while a run is under way
        self._index = 0

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> None:
        if self._seen is None or moment.index < self._index:  # an earlier run may have been broken off
            batch = len(denoised) if moment.batch is None else moment.batch
            self.images = denoised.new_zeros(len(self.times), batch, *denoised.shape[1:])
            self._seen = torch.zeros(len(self.times), batch, dtype=torch.bool, device=denoised.device)
            self.times = self.times.to(denoised.device)
        self._index = moment.index
        rows = torch.arange(len(denoised), device=denoised.device) if moment.rows is None else moment.rows
        seen = self._seen[:, rows]
        new = ~seen & (moment.t <= self.times[:, None] + _SLACK)
        self._seen[:, rows] = seen | new
        self.images[:, rows] = torch.where(_shaped(new, denoised), denoised, self.images[:, rows])

    def at_end(self, samples: Tensor) -> None:
        if self._seen is not None:
            self.images = torch.where(_shaped(self._seen, samples), self.images, samples)
        self._seen = None


def _shaped(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (n, B) for tensors (n, B, ...)."""
    return mask.reshape(*mask.shape, *[1] * (x.ndim - 1))

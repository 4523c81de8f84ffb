"""Dynamic thresholding: a bound of the clean image that follows the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore.samplers.base import check_number
from fastscore.samplers.hooks import Hook, Moment

__all__ = ["DynamicThresholding", "quantile"]


class DynamicThresholding(Hook):
    """Clips the clean image of every sample to [-s, s] and divides it by s.

    ``s`` is the `ratio`-quantile of the absolute values of the sample, interpolated linearly, but at least `max_val`:
    an image within [-max_val, max_val] is divided by max_val, and one that exceeds it is squeezed.

    Args:
        ratio: the quantile, in (0, 1].
        max_val: least s, positive.

    Raises:
        ValueError: for a ratio or max_val outside these bounds.

    Source: Saharia et al., arXiv 2205.11487, section 2.3; the floor `max_val` is that of DPM-Solver++
    (arXiv 2211.01095).
    """

    def __init__(self, ratio: float = 0.995, max_val: float = 1.0) -> None:
        check_number("DynamicThresholding", "ratio", ratio, above=0.0, most=1.0)
        check_number("DynamicThresholding", "max_val", max_val, above=0.0)
        self.ratio, self.max_val = float(ratio), float(max_val)

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> Tensor:
        if not denoised.numel():
            return denoised
        s = quantile(denoised.abs().reshape(len(denoised), -1), self.ratio).clamp(min=self.max_val).to(denoised.dtype)
        s = s.reshape(-1, *[1] * (denoised.ndim - 1))
        return denoised.clamp(-s, s) / s


def quantile(values: Tensor, ratio: float) -> Tensor:
    """The quantile of every row (B, D), in float32 or better: torch.quantile stops at 2^24 elements."""
    values = values if values.dtype == torch.float64 else values.float()
    position = ratio * (values.shape[1] - 1)
    below = math.floor(position)
    largest = values.topk(values.shape[1] - below, dim=1).values  # falling: the last is number `below` from the bottom
    return torch.lerp(largest[:, -1], largest[:, -2:][:, 0], position - below)

"""Colorization: the mean over the channels is known, the colors are generated to fit."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype, is_state, wrong_value
from fastscore.control.replacement import Replacement

__all__ = ["Colorization"]


class Colorization(Replacement):
    """Keeps the gray image, the mean over the channels: in the samples, and noised to its time before every step.

    In an orthonormal basis of the colors whose first vector is gray, (1, ..., 1) / sqrt(C), this is inpainting of the
    first coordinate, sqrt(C) times the mean; the other coordinates, whatever the basis, are left as they are. For
    another weighting of the channels see `grayscale` and `LinearReplacement`.

    Args:
        gray: means over the channels on the scale of the data, (B, 1, ...) floating point, one per sample, or
            (1, 1, ...) for all of them.

    Raises:
        TypeError: gray is not a floating-point tensor.
        ValueError: gray has not one channel, or is not finite; when sampling, gray does not fit the state.

    Source: see `Replacement`.
    """

    known_name = "gray"

    def __init__(self, gray: Tensor) -> None:
        is_state("Colorization", "gray", gray)
        if gray.ndim < 2 or gray.shape[1] != 1:
            wrong_value("Colorization", "gray", "have shape (B, 1, ...), the mean over the channels", tuple(gray.shape))
        if not bool(torch.isfinite(gray).all()):
            wrong_value("Colorization", "gray", "be finite", "NaN or infinity")
        super().__init__(gray)

    def part(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True, dtype=accumulation_dtype(x.dtype))

    def lift(self, part: Tensor) -> Tensor:
        return part

"""Inpainting: pixels that are known are kept, the others are generated to fit."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype, is_state, same_device, wrong_type, wrong_value
from fastscore.ops import masked_replace_
from fastscore.samplers.hooks import Hook, Moment

__all__ = ["Inpainting"]


class Inpainting(Hook):
    """Keeps the known pixels of an image: exactly in the samples, noised to its time in every state before a step.

    Args:
        known: images on the scale of the data, (B, ...) floating point, one per sample, or (1, ...) for all of them.
            Where the mask is False any value will do, NaN included.
        mask: True where a pixel is known, bool, of a shape that broadcasts to that of `known`.

    Raises:
        TypeError: known is not a floating-point tensor, or mask is not a bool tensor.
        ValueError: the mask does not broadcast to the shape of known, is on another device, or marks a pixel as known
            that is not finite; when sampling, known does not fit the state.

    Source: see `Replacement`.
    """

    def __init__(self, known: Tensor, mask: Tensor) -> None:
        is_state("Inpainting", "known", known)
        if not isinstance(mask, Tensor):
            wrong_type("Inpainting", "mask", "be a bool tensor", type(mask).__name__)
        if mask.dtype != torch.bool:
            wrong_type("Inpainting", "mask", "be bool, True where a pixel is known", mask.dtype)
        shape = known.shape
        if mask.ndim > known.ndim or any(m not in (1, k) for m, k in zip(mask.shape[::-1], shape[::-1], strict=False)):
            wrong_value("Inpainting", "mask", f"broadcast to the shape of known, {tuple(shape)}", tuple(mask.shape))
        same_device("Inpainting", "mask", mask, known, "known")
        rows = mask.shape[0] if mask.ndim == known.ndim else 1
        self.mask = mask.expand(rows, *shape[1:]).contiguous()
        if not bool(torch.isfinite(known[self.mask.expand(shape)]).all()):
            wrong_value("Inpainting", "known", "be finite where the mask is True", "NaN or infinity")
        self.known = known

    def before_step(self, x: Tensor, moment: Moment) -> Tensor:
        known = moment.of_rows(self.known, "Inpainting: known")
        if known.shape[1:] != x.shape[1:]:
            accepted = f"have the shape of the state, {tuple(x.shape)}, or one row of it"
            wrong_value("Inpainting", "known", accepted, tuple(self.known.shape))
        same_device("Inpainting", "known", known, x, "the state")
        mask = moment.of_rows(self.mask, "Inpainting: mask")
        rows = torch.stack(moment.sde.marginal(moment.t), -1).to(accumulation_dtype(x.dtype))
        image = known.to(x.dtype).expand_as(x)
        return masked_replace_(x, image, mask.expand_as(x), rows, **moment.drawn(x))

    def at_end(self, samples: Tensor) -> Tensor:
        return torch.where(self.mask, self.known.to(samples.dtype), samples)

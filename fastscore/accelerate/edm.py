"""Layers of EDM (Karras et al. 2022): the block that holds everything, and the convolution that resamples."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.accelerate._layers import (
    as_convolution_takes_it,
    attend,
    is_group_norm,
    normalize,
    pixels,
    rows_for,
    scaled,
)
from fastscore.accelerate._swap import Finding, Fused, hooked, why_unlike
from fastscore.ops import resample
from fastscore.ops.resample import MAX_TAPS


class FusedUNetBlock(Fused):
    """Its norms with their activations, the embedding, and self-attention over pixels."""

    names = ("UNetBlock",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        settings = ("adaptive_scale", "num_heads", "dropout", "skip_scale")
        if why := why_unlike(module, cls, ("norm0", "conv0", "affine", "norm1", "conv1", "skip", *settings)):
            return why
        if missing := [name for name in ("norm2", "qkv", "proj") if module.num_heads and not hasattr(module, name)]:
            return f"it has no {', '.join(missing)}"
        if not all(is_group_norm(norm) for norm in _norms(module)):
            return "its norms are not GroupNorm"
        if hooked(*_bypassed(module)):
            return "a hook watches its norms or its qkv"
        how = "scale and shift" if module.adaptive_scale else "the embedding before"
        found = [
            Finding("norm0", "group_norm_silu", "group_norm_silu"),
            Finding("norm1", "group_norm_silu", f"group_norm_silu with {how}"),
        ]
        if module.num_heads:
            found += [
                Finding("norm2", "group_norm_silu", "group_norm_silu, without SiLU"),
                Finding("qkv", "attention", "attention"),
            ]
        return found

    def forward(self: Any, x: Tensor, emb: Tensor) -> Tensor:
        if hooked(*_bypassed(self)):
            return super().forward(x, emb)  # type: ignore[misc]
        h = self.conv0(normalize(self.norm0, x))
        e = rows_for(self.affine(emb), h).to(h.dtype)
        if self.adaptive_scale:
            scale, shift = e.chunk(2, dim=1)
            h = normalize(self.norm1, h, scale=scale, shift=shift)
        else:
            h = normalize(self.norm1, h, add=e)
        h = self.conv1(F.dropout(h, p=self.dropout, training=self.training))
        x = (h + (x if self.skip is None else self.skip(x))).to(h.dtype)  # the published sum is made in place
        x = scaled(x, self.skip_scale)
        return self._attended(x) if self.num_heads else x

    def _attended(self: Any, x: Tensor) -> Tensor:
        rows = pixels(normalize(self.norm2, x, silu=False))
        # channels are in the order (head, channel, q k v); rows of the weight are moved in place of those of the image
        order = (self.num_heads, -1, 3)
        weight = self.qkv.weight.to(rows.dtype).flatten(1).unflatten(0, order).movedim(2, 0)
        bias = None if self.qkv.bias is None else self.qkv.bias.to(rows.dtype).unflatten(0, order).movedim(2, 0)
        heads = F.linear(rows, weight.flatten(0, 2), None if bias is None else bias.flatten())
        q, k, v = heads.unflatten(2, (3, self.num_heads, -1)).unbind(2)
        update = self.proj(attend(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:]))
        return scaled(update + x, self.skip_scale)


def _norms(block: Any) -> list[Any]:
    return [block.norm0, block.norm1, *([block.norm2] if block.num_heads else [])]


def _bypassed(block: Any) -> list[Any]:
    return [*_norms(block), *([block.qkv] if block.num_heads else [])]


class FusedConv2d(Fused):
    """The FIR filter of a convolution that resamples; the convolution itself is torch's as before."""

    kind = "resample"
    names = ("Conv2d",)

    @classmethod
    def plan(cls, module: Any) -> list[Finding] | str | None:
        if isinstance(module, nn.Conv2d) or getattr(module, "resample_filter", None) is None:
            return None
        if why := why_unlike(module, cls, ("weight", "bias", "up", "down", "fused_resample")):
            return why
        if module.up == module.down:
            return "it resamples both ways, or not at all"
        if not 2 <= module.resample_filter.shape[-1] <= MAX_TAPS:
            return "its filter is longer than resample takes, or a single tap"
        return [Finding("", "resample", "resample, and the convolution as before")]

    def forward(self: Any, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        x, taps = as_convolution_takes_it(x), self.resample_filter[0, 0].to(x.dtype)
        length, before = taps.shape[0], (taps.shape[0] - 1) // 2
        border = 0 if weight is None else weight.shape[-1] // 2
        if self.up:
            # a transposed convolution with padding p: its zeros are L - 1 - p before, and one less after
            fused = self.fused_resample and weight is not None
            pad, border = (max(before - border, 0), max(border - before, 0)) if fused else (before, border)
            x = resample(x, 4 * taps, up=2, padding=(length - 1 - pad, length - 2 - pad))
        elif self.fused_resample and weight is not None:
            # filter and stride come last
            x = F.conv2d(x, weight, padding=border + before)
            return _biased(resample(x, taps.flip(0, 1), down=2), bias)
        else:
            x = resample(x, taps.flip(0, 1), down=2, padding=(before, before))
        return _biased(x if weight is None else F.conv2d(x, weight, padding=border), bias)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


MIXINS: list[type[Fused]] = [FusedUNetBlock, FusedConv2d]

"""Convolutions and linear layers as calls, with what stands in front of them and behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fastscore.engine.fuse import (
    Front,
    Layer,
    bias_of,
    conv_settings,
    front_of,
    is_pointwise,
    norm_arguments,
    padding_of,
    rows_of,
    viewed,
)
from fastscore.engine.trace import Traced, UntraceableError, aten, native, shape_of
from fastscore.engine.values import Ref, Root, as_pixels, as_rows, pixel_rows, pixels
from fastscore.engine.writer import Writer
from fastscore.ops._plans import Shape
from fastscore.ops.conv3x3 import cheapest, transformed

Read = tuple[Ref | None, Ref | None, bool, bool]  # gain, offset, silu, upsample
Written = tuple[Ref | None, Ref | None, Ref | None, float]  # bias, shift, residual, scale
LARGE = 4 << 20  # bytes of an image that is on its way out of the caches when it has been written
_PLAIN: Read = (None, None, False, False)
_winograd_into = native.conv3x3_winograd_into.default  # its last arguments are statistics and out


class LayerWriter(Writer):
    """Emits `conv3x3_winograd_into`, `conv_gemm_into` and `group_affine_into`.

    An image is (B, C, H, W) in pixel rows; rows (..., C) are looked at as an image.

    Attributes:
        shapes: of the 3x3 convolutions that may be Winograd's.
    """

    def __init__(self, traced: Traced, threads: int):
        super().__init__(traced)
        self.shapes: list[Shape] = []
        self._threads = threads
        self._affine: dict[fx.Node, tuple[Ref, Ref]] = {}

    def _layer(self, layer: Layer) -> None:
        """One layer with all that follows it."""
        anchor = layer.anchor
        weight, bias = self._ref(anchor.args[1]), self._optional(bias_of(anchor))
        source: Any = anchor.args[0]
        stride, padding = (1, 0) if anchor.target is aten.linear.default else (n[0] for n in conv_settings(anchor)[:2])
        before = padding_of(source)
        if before is not None and not padding and _sees_image(anchor, source.args[0], before, stride):
            source, padding = source.args[0], before
        image, shape = anchor.target is aten.conv2d.default, shape_of(layer.last)
        out = self._new(layer.last) if image or layer.views or len(shape) != 4 else self._fresh(shape)
        form = rows_of if layer.views else partial(_form, anchor)
        rows = _found(form(out.meta))
        target = out.view(pixels(rows, shape_of(anchor), rows.stride(3)) if image else rows)
        x, read = self._input(anchor, source, target, stride)
        shift = None if layer.shift is None else self._ref(layer.shift)
        shift = None if shift is None else shift.view(shift.meta[:, :, 0, 0].expand(target.shape[0], -1))
        residual = None if layer.residual is None else self._residual(self._ref(layer.residual), target, form)
        self._convolution(x, weight, target, stride, padding, (bias, shift, residual, layer.scale), read)
        self._refs[layer.last] = out

    def _siblings(self, group: list[Layer]) -> None:
        """Layers that read the same, as one with all their outputs."""
        anchors = [layer.anchor for layer in group]
        first, shapes = anchors[0], [shape_of(anchor) for anchor in anchors]
        image = first.target is aten.conv2d.default
        channel = 1 if image else len(shapes[0]) - 1
        widths = [shape[channel] for shape in shapes]
        shape = (*shapes[0][:channel], sum(widths), *shapes[0][channel + 1 :])
        out = self._image(shape) if image else self._fresh(shape)
        target = out.view(_found(_form(first, out.meta)))
        x, read = self._input(first, first.args[0], target, 1)
        weights = [self._ref(anchor.args[1]) for anchor in anchors]
        biases = [self._ref(bias_of(anchor)) for anchor in anchors if bias_of(anchor) is not None]
        weight = _packed(_stacked, *weights, shape=(sum(widths), weights[0].shape[1]))
        bias = _packed(_stacked, *biases, shape=(sum(widths),)) if biases else None
        self._convolution(x, weight, target, 1, 0, (bias, None, None, 1.0), read)
        at = 0
        for layer, width in zip(group, widths, strict=True):
            self._refs[layer.last] = out.view(out.meta.narrow(channel, at, width))
            at += width

    def _input(self, anchor: fx.Node, source: Any, target: Ref, stride: int) -> tuple[Ref, Read]:
        """What a layer reads, and what it does to it on the way."""
        pointwise = is_pointwise(anchor)
        front = front_of(source, views=pointwise)
        if front.norm is not None or front.silu or front.upsample:
            enlarges = anchor.target is aten.conv2d.default and stride == 1  # what the kernels can do on the way
            x = None if front.upsample and not enlarges else self._base(anchor, front, target)
            if x is not None:
                gain, offset = (None, None) if front.norm is None else self._affine_of(front.norm)
                return x, (gain, offset, front.silu, front.upsample)
        ref = self._ref(source)
        rows = _form(anchor, ref.meta)
        if rows is None:
            image = anchor.target is aten.conv2d.default
            ref = self._copied(ref, self._image(ref.shape) if image else self._fresh(ref.shape))
            rows = _found(_form(anchor, ref.meta))
        return ref.view(_recut(rows, target) if pointwise else rows), _PLAIN

    def _base(self, anchor: fx.Node, front: Front, target: Ref) -> Ref | None:
        """The base of a layer's front as the layer reads it; None where the norm's channels are not the layer's."""
        base = self._ref(front.base)
        meta: Tensor | None = base.meta
        for node in front.views:
            meta = None if meta is None else viewed(meta, node)
        rows = None if meta is None else _form(anchor, meta)
        if rows is None:
            return None
        if front.norm is not None:
            normed = as_pixels(_spatial(base.meta))
            if normed is None or (base.shape[0], base.shape[1]) != (target.shape[0], rows.shape[1]):
                return None
        return base.view(_recut(rows, target) if is_pointwise(anchor) and not front.upsample else rows)

    def _residual(self, ref: Ref, target: Ref, form: Callable[[Tensor], Tensor | None]) -> Ref:
        """What is added to a result, cut like it."""
        if form(ref.meta) is None:
            image = len(ref.shape) == 4 and form(pixel_rows(ref.shape)) is not None
            ref = self._copied(ref, self._image(ref.shape) if image else self._fresh(ref.shape))
        return ref.view(_recut(_found(form(ref.meta)), target))

    def _affine_of(self, norm: fx.Node) -> tuple[Ref, Ref]:
        """Gain and offset of a norm, computed once."""
        if norm not in self._affine:
            a = norm_arguments(norm)
            x = self._ref(a["x"])
            x = x.view(_found(as_pixels(_spatial(x.meta))))
            parameters = [self._optional(a[name]) for name in ("weight", "bias", "scale", "shift")]
            gain, offset = self._fresh(x.shape[:2]), self._fresh(x.shape[:2])
            args = (x, a["groups"], float(a["eps"]), *parameters, *self._strips(x), gain, offset)
            self._emit(native.group_affine_into.default, args, (gain, offset), "group_affine")
            self._affine[norm] = gain, offset
        return self._affine[norm]

    def _strips(self, x: Ref) -> tuple[Ref | None, int]:
        """Statistics of x, and rows of a strip, where Winograd kernels have written all of it; they take them then.

        Of images that the caches hold, a pass over x costs no more than that.
        """
        if x.meta.numel() * x.meta.itemsize < LARGE:
            return None, 0
        first, parts = x.meta.storage_offset(), []
        kernels = [c for c in self.calls if c.function is _winograd_into and c.writes[0].root is x.root]
        for call in sorted(kernels, key=lambda call: call.writes[0].meta.storage_offset()):
            out = call.writes[0].meta
            if out.storage_offset() == first and out.stride() == x.meta.stride() and out.shape[2:] == x.shape[2:]:
                parts.append(call)
                first += out.shape[1]
        tiles = {call.args[3] for call in parts}
        if first - x.meta.storage_offset() != x.shape[1] or len(tiles) != 1:
            return None, 0
        (tile,) = tiles
        strips = self._fresh((x.shape[0], -(-x.shape[2] // tile), 3, x.shape[1]))
        at = 0
        for call in parts:
            place = strips.view(strips.meta.narrow(3, at, call.writes[0].shape[1]))
            at += place.shape[3]
            if call.args[-2] is None:
                call.args, call.writes = (*call.args[:-2], place, call.args[-1]), (*call.writes, place)
            else:
                self._copied(call.args[-2], place)
        return strips, tile

    def _convolution(
        self, x: Ref, weight: Ref, out: Ref, stride: int, padding: int, written: Written, read: Read
    ) -> None:
        outputs, channels = weight.shape[:2]
        batch, _, height, width = out.shape
        kernel, enlarged, method = _kernel(weight), 1 + read[3], "direct"
        same_size = (x.shape[2] * enlarged, x.shape[3] * enlarged) == (height, width)
        if (kernel, stride, padding) == (3, 1, 1) and same_size:
            self.shapes.append((batch, channels, height, width, outputs))
            method = cheapest(*self.shapes[-1], self._threads)
        if method == "direct":
            packed = _packed(native.conv_gemm_weights.default, weight)
            direct = (x, packed, outputs, kernel, stride, padding, *written, *read, out)
            self._emit(native.conv_gemm_into.default, direct, (out,), "conv_gemm")
            return
        tile = int(method[-1])
        packed = _packed(partial(transformed, tile=tile), weight)
        args = (x, packed, outputs, tile, *written, *read, None, out)
        self._emit(_winograd_into, args, (out,), f"conv3x3 F({tile}x{tile})")


def _form(anchor: fx.Node, meta: Tensor) -> Tensor | None:
    """The pixels that a layer reads or writes, as it sees them."""
    return as_rows(meta) if anchor.target is aten.linear.default else as_pixels(meta)


def _sees_image(conv: fx.Node, image: Any, before: int, stride: int) -> bool:
    """Whether no window of a convolution lies in the zeros around an image alone."""
    if conv.target is not aten.conv2d.default or before >= shape_of(conv.args[1])[2]:
        return False
    sides = zip(shape_of(conv)[2:], shape_of(image)[2:], strict=True)
    return all((windows - 1) * stride - before < size for windows, size in sides)


def _kernel(weight: Ref) -> int:
    return weight.shape[2] if len(weight.shape) == 4 else 1


def _recut(rows: Tensor, target: Ref) -> Tensor:
    """The same pixels, in images like those of the target."""
    b, _, h, w = target.shape
    return pixels(rows, (b, rows.shape[1], h, w), rows.stride(3))


def _spatial(meta: Tensor) -> Tensor:
    """(B, C, *spatial) as (B, C, H, W)."""
    return meta if meta.dim() == 4 else meta.unsqueeze(2) if meta.dim() == 3 else meta[:, :, None, None]


def _found(meta: Tensor | None) -> Tensor:
    if meta is None:
        raise UntraceableError("an image whose channels do not lie side by side")
    return meta


def _packed(pack: Callable[..., Tensor], *sources: Ref, shape: tuple[int, ...] = ()) -> Ref:
    return Ref(Root(torch.float32, sources=sources, pack=pack), torch.empty(shape, device="meta"))


def _stacked(*parts: Tensor) -> Tensor:
    """Weights or biases of siblings, one after the other."""
    return torch.cat([part.flatten(1) if part.dim() > 1 else part for part in parts])

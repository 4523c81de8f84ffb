"""From a graph of torch's operators to a list of calls of fused ops."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fastscore.engine.fuse import (
    SPLITS,
    VIEWS,
    Front,
    Layer,
    conv_settings,
    enlarges,
    front_of,
    is_layer,
    layer_at,
    norm_arguments,
)
from fastscore.engine.trace import Traced, UntraceableError, aten, draws, is_norm, native, shape_of
from fastscore.engine.values import Call, Ref, Root, as_pixels, as_rows, pixel_rows, pixels, refs_in, replaced
from fastscore.ops._plans import Shape
from fastscore.ops.conv3x3 import cheapest, transformed

_OUT = {
    aten.add.Tensor: aten.add.out,
    aten.sub.Tensor: aten.sub.out,
    aten.mul.Tensor: aten.mul.out,
    aten.div.Tensor: aten.div.out,
    aten.silu.default: aten.silu.out,
    aten.sigmoid.default: aten.sigmoid.out,
    aten.avg_pool2d.default: aten.avg_pool2d.out,
}


class Lowering:
    """Walks a graph once and emits calls.

    Attributes:
        calls: in order.
        results: of the network.
        placed: placeholder of an argument -> where the program wants it.
        unfused: operators of images that torch computes, by name.
        shapes: of the 3x3 convolutions that may be Winograd's.
    """

    def __init__(self, traced: Traced, threads: int):
        self.calls: list[Call] = []
        self.results: list[Ref] = []
        self.placed: dict[fx.Node, Ref] = {}
        self.unfused: list[str] = []
        self.shapes: list[Shape] = []
        self._traced, self._threads = traced, threads
        self._refs: dict[fx.Node, Any] = {}
        self._affine: dict[fx.Node, tuple[Ref, Ref]] = {}
        self._layers: dict[fx.Node, Layer] = {}  # by the node whose value they write
        self._absorbed: set[fx.Node] = set()
        self._together: dict[fx.Node, list[Layer]] = {}
        self._joined: dict[fx.Node, tuple[fx.Node, int]] = {}  # source -> the concatenation it lies in, first channel
        self._find_layers()
        self._find_siblings()
        self._find_concatenations()
        for node in traced.graph.nodes:
            self._visit(node)
        self.results = [self._ref(node) for node in traced.outputs]

    # ------------------------------------------------------------ what belongs together

    def _find_layers(self) -> None:
        taken: set[fx.Node] = set()
        for node in self._traced.graph.nodes:
            if not is_layer(node):
                continue
            layer = layer_at(node, taken)
            current: fx.Node = node
            while current is not layer.last:
                self._absorbed.add(current)
                (current,) = current.users
            self._layers[layer.last] = layer
            taken |= {*self._absorbed, layer.last}

    def _find_siblings(self) -> None:
        """Linear layers that read the same thing: one product."""
        groups: dict[Any, list[Layer]] = {}
        for layer in self._layers.values():
            if layer.plain and self._pointwise(layer.anchor):
                front = front_of(layer.anchor.args[0], views=True)  # type: ignore[arg-type]
                if front.upsample:
                    continue
                rank = layer.anchor.target, len(shape_of(layer.anchor)), _bias_of(layer.anchor) is not None
                groups.setdefault((front.key, rank), []).append(layer)
        for group in groups.values():
            if len(group) > 1:
                self._together |= {layer.last: group for layer in group}

    def _find_concatenations(self) -> None:
        for node in self._traced.graph.nodes:
            if node.target is not aten.cat.default or len(shape_of(node)) != 4 or node.args[1:] != (1,):
                continue
            at = 0
            for source in node.args[0]:
                alone = source not in self._joined and source not in self._together
                if alone and self._writes(source):
                    self._joined[source] = node, at
                at += shape_of(source)[1]

    def _writes(self, node: fx.Node) -> bool:
        """Whether a call will write the value of a node, wherever it is told to."""
        if node in self._layers:
            return True
        lazy = node.target in VIEWS | SPLITS or node.target is operator.getitem or self._lazy(node)
        return node.op == "call_function" and not lazy and node.target is not aten.cat.default

    @staticmethod
    def _pointwise(node: fx.Node) -> bool:
        if node.target is aten.linear.default:
            return True
        stride, padding, *_ = conv_settings(node)
        return shape_of(node.args[1])[2:] == (1, 1) and stride == (1, 1) and padding == (0, 0)  # type: ignore[arg-type]

    @staticmethod
    def _lazy(node: fx.Node) -> bool:
        """What is computed only where somebody asks for its value."""
        wrapped = node.target is native.group_norm_silu_fwd.default
        return wrapped or is_norm(node) or node.target is aten.silu.default or enlarges(node) or _pads(node) is not None

    # ------------------------------------------------------------ values

    def _visit(self, node: fx.Node) -> None:
        if node.op != "call_function" or node in self._absorbed or node in self._refs or self._lazy(node):
            return
        if node in self._layers:
            self._layer(self._layers[node])
        elif isinstance(node.meta.get("val"), Tensor) and node.target not in VIEWS | {operator.getitem}:
            self._compute(node)  # one of several values is computed when somebody asks for it

    def _ref(self, node: fx.Node) -> Ref:
        """The value of a node, in memory."""
        if node not in self._refs:
            if node in self._traced.tensors:
                get = self._traced.tensors[node]
                whole = get().detach().to("meta")
                self._refs[node] = Ref(Root(whole.dtype, get=get, whole=whole), whole)
            elif node.op == "placeholder":
                self.placed[node] = self._refs[node] = self._new(node)
            elif node.target in VIEWS:
                self._refs[node] = self._viewed(node)
            elif node.target is operator.getitem and node.args[0].target in SPLITS:  # type: ignore[union-attr]
                split: Any = node.args[0]
                source = self._ref(split.args[0])
                parts = split.target(source.meta, *split.args[1:], **split.kwargs)
                self._refs[node] = source.view(parts[node.args[1]])
            else:
                self._compute(node)
        return self._refs[node]

    def _viewed(self, node: fx.Node) -> Ref:
        source = self._ref(node.args[0])  # type: ignore[arg-type]
        meta = _view(source.meta, node)
        return self._copied(source, node) if meta is None else source.view(meta)

    def _copied(self, source: Ref, node: fx.Node) -> Ref:
        """What torch would copy: a view of memory in another order."""
        target: Any = node.target
        target = aten.reshape.default if target in (aten.view.default, aten._unsafe_view.default) else target
        if not source.root.planned:
            return self._constant(node, target, (source, *node.args[1:]), dict(node.kwargs))
        out = self._fresh(shape_of(node), source.meta.dtype)
        self._emit(_copying, (out, target, [source, *node.args[1:]]), (out,), "copy")
        return out

    @staticmethod
    def _constant(node: fx.Node, target: Callable[..., Any], args: Any, kwargs: Any, which: Any = None) -> Ref:
        """What depends on parameters alone: made when they change, like transformed weights."""
        sources = tuple(refs_in((args, tuple(kwargs.values()))))

        def make(*tensors: Tensor) -> Tensor:
            given = dict(zip(sources, tensors, strict=True))
            result = target(*replaced(args, given.get), **{k: replaced(v, given.get) for k, v in kwargs.items()})
            return (result if which is None else result[which]).contiguous()

        dtype = node.meta["val"].dtype
        meta = torch.empty(shape_of(node), dtype=dtype, device="meta")
        return Ref(Root(dtype, whole=meta, sources=sources, pack=make), meta)

    def _fresh(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Ref:
        meta = torch.empty(shape, dtype=dtype, device="meta")
        return Ref(Root(dtype, meta.numel()), meta)

    def _new(self, node: fx.Node) -> Ref:
        """Memory for the value of a node: pixel rows for images, in a concatenation where it goes into one."""
        shape, dtype = shape_of(node), node.meta["val"].dtype
        if node in self._joined:
            whole, first = self._joined[node]
            if whole not in self._refs:
                self._refs[whole] = self._new(whole)
            ref: Ref = self._refs[whole]
            return ref.view(ref.meta.narrow(1, first, shape[1]))
        if len(shape) != 4:
            return self._fresh(shape, dtype)
        meta = pixel_rows(shape, dtype)
        return Ref(Root(dtype, meta.numel()), meta)

    def _emit(self, function: Callable[..., Any], args: tuple[Any, ...], writes: tuple[Ref, ...], name: str) -> None:
        self.calls.append(Call(function, args, {}, writes, name))

    # ------------------------------------------------------------ operators

    def _compute(self, node: fx.Node) -> None:
        """A node by itself."""
        target: Any = node.target
        if target is aten.cat.default and node.args[1:] == (1,) and len(shape_of(node)) == 4:
            return self._concatenate(node)
        if target is aten.scaled_dot_product_attention.default:
            return self._attention(node)
        if is_norm(node):
            return self._norm(node)
        call, which = (node.args[0], node.args[1]) if target is operator.getitem else (node, None)
        assert isinstance(call, fx.Node)
        if call.target is native.attention_fwd.default and which == 0 and _plain_attention(call):
            q, k, v, _, scale, *_ = call.args
            return self._attend(node, q, k, v, scale)
        if draws(call):
            raise UntraceableError(f"it draws random numbers: {call.target}")
        refs: Any = self._ref
        args, kwargs = fx.node.map_arg((call.args, call.kwargs), refs)
        if all(not ref.root.planned for ref in refs_in((args, tuple(kwargs.values())))):
            self._refs[node] = self._constant(node, call.target, args, kwargs, which)  # type: ignore[arg-type]
            return None
        out = self._refs[node] = self._new(node)
        name = str(call.target).removesuffix(".default")
        if len(out.shape) == 4 and out.meta.numel() > 4096:
            self.unfused.append(name)
        if target in _OUT:
            self.calls.append(Call(_OUT[target], tuple(args), {**kwargs, "out": out}, (out,), name))
        else:
            function: Any = call.target
            self._emit(_copying, (out, partial(function, **kwargs), list(args), which), (out,), name)
        return None

    def _concatenate(self, node: fx.Node) -> None:
        parts: Any = node.args[0]
        sources = [(source, self._ref(source)) for source in parts]
        if node not in self._refs:
            self._refs[node] = self._new(node)
        whole, at = self._refs[node], 0
        for source, ref in sources:
            if self._joined.get(source) != (node, at):
                part = whole.view(whole.meta.narrow(1, at, ref.shape[1]))
                self._emit(aten.copy_.default, (part, ref), (part,), "copy")
            at += ref.shape[1]

    def _norm(self, node: fx.Node) -> None:
        """A norm whose value somebody wants."""
        a = norm_arguments(node)
        x, *parameters = (
            None if a[name] is None else self._ref(a[name]) for name in ("x", "weight", "bias", "scale", "shift")
        )
        weight, bias, scale, shift = parameters
        out = self._refs[node] = self._new(node)
        args = (out, x, weight, bias, scale, shift, a["groups"], a["eps"], a["silu"])
        self._emit(_normalized, args, (out,), "group_norm_silu")

    def _attention(self, node: fx.Node) -> None:
        names = ("q", "k", "v", "attn_mask", "dropout_p", "is_causal")
        given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
        if given.get("attn_mask") is not None or given.get("dropout_p") or given.get("is_causal"):
            raise UntraceableError("attention with a mask or dropout")
        if len(shape_of(node)) != 4:
            raise UntraceableError("attention that is not of (B, heads, N, D)")
        self._attend(node, given["q"], given["k"], given["v"], given.get("scale"))

    def _attend(self, node: fx.Node, *arguments: Any) -> None:
        *inputs, scale = arguments
        q, k, v = (self._aligned(self._ref(value)) for value in inputs)
        b, heads, n, d = shape_of(node)
        out = self._fresh((b, n, heads, d))
        out = self._refs[node] = out.view(out.meta.transpose(1, 2))
        scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
        self._emit(native.attention_into.default, (q, k, v, scale, out), (out,), "attention")

    def _aligned(self, ref: Ref) -> Ref:
        """With the last dimension side by side."""
        if ref.meta.stride(-1) == 1 or ref.shape[-1] == 1:
            return ref
        out = self._fresh(ref.shape)
        self._emit(aten.copy_.default, (out, ref), (out,), "copy")
        return out

    # ------------------------------------------------------------ layers

    def _layer(self, layer: Layer) -> None:
        if layer.last in self._together:
            return self._siblings(self._together[layer.last])
        anchor = layer.anchor
        weight, bias = self._parameters(anchor)
        pointwise = self._pointwise(anchor)
        source: fx.Node = anchor.args[0]  # type: ignore[assignment]
        stride, padding = (1, 0) if anchor.target is aten.linear.default else (n[0] for n in conv_settings(anchor)[:2])
        before = _pads(source)
        if before is not None and not padding and before < (self._ref(anchor.args[1]).shape[2:] or (1,))[0]:  # type: ignore[arg-type]
            source, padding = source.args[0], before  # type: ignore[assignment]
        out, target = self._output(layer)
        x, gain, offset, silu, upsample = self._front(source, target, pointwise, stride)
        shift = None if layer.shift is None else self._per_sample(layer.shift, target)
        residual = None if layer.residual is None else self._like(self._ref(layer.residual), target)
        front = gain, offset, silu, upsample
        behind = bias, shift, residual, layer.scale
        self._convolution(x, weight, target, stride, padding, behind, front)
        self._refs[layer.last] = out
        return None

    def _siblings(self, group: list[Layer]) -> None:
        """Layers that read the same, as one with all their outputs."""
        first = group[0].anchor
        parameters = [self._parameters(layer.anchor) for layer in group]
        shapes = [shape_of(layer.anchor) for layer in group]
        image = first.target is aten.conv2d.default
        channel = 1 if image else len(shapes[0]) - 1
        widths = [shape[channel] for shape in shapes]
        shape = (*shapes[0][:channel], sum(widths), *shapes[0][channel + 1 :])
        meta = pixel_rows(shape) if image else torch.empty(shape, device="meta")
        out = Ref(Root(torch.float32, meta.numel()), meta)
        target = out.view(_found(as_pixels(meta) if image else as_rows(meta)))
        x, gain, offset, silu, _ = self._front(first.args[0], target, True, 1)  # type: ignore[arg-type]
        weight = self._packed(_stacked, *(weight for weight, _ in parameters))
        biases = [bias for _, bias in parameters if bias is not None]
        bias = self._packed(_stacked, *biases, shape=(sum(widths),)) if biases else None
        weight = weight.view(torch.empty((sum(widths), *parameters[0][0].shape[1:]), device="meta"))
        self._convolution(x, weight, target, 1, 0, (bias, None, None, 1.0), (gain, offset, silu, False))
        at = 0
        for layer, width in zip(group, widths, strict=True):
            self._refs[layer.last] = out.view(out.meta.narrow(channel, at, width))
            at += width

    def _parameters(self, anchor: fx.Node) -> tuple[Ref, Ref | None]:
        bias = _bias_of(anchor)
        return self._ref(anchor.args[1]), None if bias is None else self._ref(bias)  # type: ignore[arg-type]

    def _output(self, layer: Layer) -> tuple[Ref, Ref]:
        """Where a layer writes: as its last node has it, and as an image."""
        shape = shape_of(layer.last)
        natural = shape_of(layer.anchor)
        image = layer.anchor.target is aten.conv2d.default
        if not layer.views:
            out = self._new(layer.last) if image or len(shape) != 4 else self._fresh(shape)
            return out, out.view(_found(as_pixels(out.meta) if image else as_rows(out.meta)))
        plain = pixel_rows(natural) if image else torch.empty(natural, device="meta")
        meta: Tensor | None = plain
        for node in layer.views:
            meta = None if meta is None else _view(meta, node)
        if meta is not None and len(shape) == 4 and as_pixels(meta) is not None and meta.stride(3) == shape[1]:
            out = self._new(layer.last)
            return out, out.view(_found(as_pixels(out.meta)))
        raise UntraceableError("a layer that is added to an image in another order")

    def _front(
        self, source: fx.Node, target: Ref, pointwise: bool, stride: int
    ) -> tuple[Ref, Ref | None, Ref | None, bool, bool]:
        """x as an image of pixel rows, gain and offset, whether SiLU is applied, whether x is enlarged."""
        front = front_of(source, views=pointwise)
        if front.norm is None and not front.silu and not front.upsample:
            return self._image(self._ref(source), target, pointwise), None, None, False, False
        found = self._image_of(front, target, pointwise) if not (front.upsample and stride > 1) else None
        if found is None:
            return self._image(self._ref(source), target, pointwise), None, None, False, False
        gain, offset = (None, None) if front.norm is None else self._affine_of(front.norm)
        return found, gain, offset, front.silu, front.upsample

    def _image_of(self, front: Front, target: Ref, pointwise: bool) -> Ref | None:
        """The base of a layer's front, if the norm's channels are the layer's."""
        base = self._ref(front.base)
        meta: Tensor | None = base.meta
        for node in front.views:
            meta = None if meta is None else _view(meta, node)
        if meta is None:
            return None
        if front.norm is not None and (as_pixels(_as_image(base.meta)) is None or base.shape[0] != target.shape[0]):
            return None
        rows = as_pixels(meta) if meta.dim() == 4 and not front.views else as_rows(meta)
        if not pointwise or front.upsample:
            return None if rows is None else base.view(rows)
        if rows is None or (front.norm is not None and rows.shape[1] != base.shape[1]):
            return None
        return base.view(self._recut(rows, target))

    def _image(self, ref: Ref, target: Ref, pointwise: bool) -> Ref:
        """A value as a layer reads it; copied where it lies otherwise."""
        rows = as_pixels(ref.meta) if not pointwise else self._as_rows(ref, target)
        if rows is None:
            fresh = ref.meta
            meta = pixel_rows(ref.shape) if fresh.dim() == 4 else torch.empty(ref.shape, device="meta")
            copy = Ref(Root(torch.float32, meta.numel()), meta)
            self._emit(aten.copy_.default, (copy, ref), (copy,), "copy")
            ref, rows = copy, as_pixels(meta) if not pointwise else self._as_rows(copy, target)
        return ref.view(self._recut(_found(rows), target) if pointwise else _found(rows))

    @staticmethod
    def _as_rows(ref: Ref, target: Ref) -> Tensor | None:
        """Of what a pointwise layer reads: an image (B, C, H, W) or rows (..., C)."""
        image = as_pixels(ref.meta) if ref.meta.dim() == 4 else None
        b, _, h, w = target.shape
        if image is not None and (image.shape[0], *image.shape[2:]) == (b, h, w):
            return image
        return as_rows(ref.meta)

    @staticmethod
    def _recut(rows: Tensor, target: Ref) -> Tensor:
        b, _, h, w = target.shape
        return pixels(rows, (b, rows.shape[1], h, w), rows.stride(3))

    def _like(self, ref: Ref, target: Ref) -> Ref:
        """A residual, cut like the result."""
        meta = as_pixels(ref.meta) if ref.shape == target.shape else as_rows(ref.meta)
        if meta is None:
            copy = self._fresh((target.shape[0], *target.shape[2:], target.shape[1]))
            copy = copy.view(copy.meta.permute(0, 3, 1, 2))
            self._emit(aten.copy_.default, (copy, ref), (copy,), "copy")
            return copy.view(_found(as_pixels(copy.meta)))
        return ref.view(self._recut(meta, target))

    def _per_sample(self, node: fx.Node, target: Ref) -> Ref:
        """(B, K, 1, 1) as (B, K)."""
        ref = self._ref(node)
        meta = ref.meta[:, :, 0, 0].expand(target.shape[0], -1)
        return ref.view(meta)

    def _affine_of(self, norm: fx.Node) -> tuple[Ref, Ref]:
        """Gain and offset of a norm, computed once."""
        if norm not in self._affine:
            a = norm_arguments(norm)
            x = self._ref(a["x"])
            x = x.view(_found(as_pixels(_as_image(x.meta))))
            weight, bias, scale, shift = (
                None if a[name] is None else self._ref(a[name]) for name in ("weight", "bias", "scale", "shift")
            )
            gain, offset = self._fresh(x.shape[:2]), self._fresh(x.shape[:2])
            args = (x, a["groups"], float(a["eps"]), weight, bias, scale, shift, gain, offset)
            self._emit(native.group_affine_into.default, args, (gain, offset), "group_affine")
            self._affine[norm] = gain, offset
        return self._affine[norm]

    def _packed(self, pack: Callable[..., Tensor], *sources: Ref, shape: tuple[int, ...] = ()) -> Ref:
        return Ref(Root(torch.float32, sources=sources, pack=pack), torch.empty(shape, device="meta"))

    def _convolution(
        self,
        x: Ref,
        weight: Ref,
        out: Ref,
        stride: int,
        padding: int,
        behind: tuple[Ref | None, Ref | None, Ref | None, float],
        front: tuple[Ref | None, Ref | None, bool, bool],
    ) -> None:
        outputs, channels = weight.shape[:2]
        kernel = weight.shape[2] if len(weight.shape) == 4 else 1
        batch, _, height, width = out.shape
        method = "direct"
        if (kernel, stride, padding) == (3, 1, 1) and x.shape[2] * (1 + front[3]) == height:
            self.shapes.append((batch, channels, height, width, outputs))
            method = cheapest(*self.shapes[-1], self._threads)
        if method == "direct":
            packed = self._packed(native.conv_gemm_weights.default, weight)
            direct = (x, packed, outputs, kernel, stride, padding, *behind, *front, out)
            self._emit(native.conv_gemm_into.default, direct, (out,), "conv_gemm")
            return
        tile = int(method[-1])
        packed = self._packed(partial(transformed, tile=tile), weight)
        args = (x, packed, outputs, tile, *behind, *front, None, out)
        self._emit(native.conv3x3_winograd_into.default, args, (out,), f"conv3x3 F({tile}x{tile})")


def _bias_of(layer: fx.Node) -> fx.Node | None:
    return layer.args[2] if len(layer.args) > 2 else None  # type: ignore[return-value]


def _pads(node: fx.Node) -> int | None:
    """Rows and columns of zeros that a node puts in front of an image; None if it does something else."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default):
        return None
    mode = node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
    value = node.args[-1] if isinstance(node.args[-1], int | float) else 0
    sides: Any = node.args[1]
    if mode != "constant" or value or len(sides) != 4 or min(sides) < 0 or sides[0] != sides[2]:
        return None
    return int(sides[0])


def _plain_attention(node: fx.Node) -> bool:
    q: Any
    q, _, _, residual, _, output_scale, _ = node.args
    return residual is None and bool(output_scale == 1) and q.meta["val"].dtype is torch.float32


def _view(meta: Tensor, node: fx.Node) -> Tensor | None:
    """What a view makes of a tensor; None where it would be a copy."""
    try:
        out: Tensor = node.target(meta, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    except RuntimeError:
        return None
    return out if out.untyped_storage()._cdata == meta.untyped_storage()._cdata else None


def _as_image(meta: Tensor) -> Tensor:
    """(B, C, *spatial) as (B, C, H, W)."""
    return meta if meta.dim() == 4 else meta.unsqueeze(2) if meta.dim() == 3 else meta[:, :, None, None]


def _found(meta: Tensor | None) -> Tensor:
    if meta is None:
        raise UntraceableError("an image whose channels do not lie side by side")
    return meta


def _stacked(*parts: Tensor) -> Tensor:
    """Weights or biases of siblings, one after the other."""
    return torch.cat([part.flatten(1) if part.dim() > 1 else part for part in parts])


def _copying(out: Tensor, target: Callable[..., Any], args: list[Any], which: int | None = None) -> None:
    """An operator that makes its own result; `which` of several."""
    result = target(*args)
    out.copy_(result if which is None else result[which])


def _normalized(
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> None:
    out.copy_(native.group_norm_silu_fwd.default(x, weight, bias, None, scale, shift, groups, eps, silu)[0])

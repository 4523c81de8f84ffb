"""From a graph of torch's operators to a list of calls of fused ops."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

from torch import Tensor, fx

from fastscore.engine.fuse import (
    SPLITS,
    VIEWS,
    Layer,
    bias_of,
    enlarges,
    front_of,
    is_layer,
    is_pointwise,
    layer_at,
    norm_arguments,
    padding_of,
)
from fastscore.engine.layers import LayerWriter
from fastscore.engine.trace import Traced, UntraceableError, aten, draws, is_norm, native, shape_of
from fastscore.engine.values import Call, Ref, pixel_rows, refs_in
from fastscore.engine.writer import copying

_OUT = {
    aten.add.Tensor: aten.add.out,
    aten.sub.Tensor: aten.sub.out,
    aten.mul.Tensor: aten.mul.out,
    aten.div.Tensor: aten.div.out,
    aten.silu.default: aten.silu.out,
    aten.sigmoid.default: aten.sigmoid.out,
    aten.avg_pool2d.default: aten.avg_pool2d.out,
}


class Lowering(LayerWriter):
    """Walks a graph once and emits calls.

    Attributes:
        results: of the network.
        unfused: operators of images that torch computes, by name.
    """

    def __init__(self, traced: Traced, threads: int):
        super().__init__(traced, threads)
        self.unfused: list[str] = []
        self._layers: dict[fx.Node, Layer] = {}  # by the node whose value they write
        self._absorbed: set[fx.Node] = set()
        self._together: dict[fx.Node, list[Layer]] = {}
        self._find_layers()
        self._find_siblings()
        self._find_concatenations()
        for node in traced.graph.nodes:
            self._visit(node)
        self.results: list[Ref] = [self._ref(node) for node in traced.outputs]

    def _find_layers(self) -> None:
        fixed: set[Any] = {None, *self._traced.tensors}  # what depends on parameters alone
        taken: set[fx.Node] = set()
        for node in self._traced.graph.nodes:
            if node.op == "call_function" and fixed.issuperset(node.all_input_nodes):
                fixed.add(node)
            if not is_layer(node) or node.args[1] not in fixed or bias_of(node) not in fixed:
                continue
            layer = layer_at(node, taken)
            current: fx.Node = node
            while current is not layer.last:
                self._absorbed.add(current)
                taken.add(current)
                (current,) = current.users
            self._layers[layer.last] = layer
            taken.add(layer.last)

    def _find_siblings(self) -> None:
        """Pointwise layers that read the same thing: one product."""
        groups: dict[Any, list[Layer]] = {}
        for layer in self._layers.values():
            anchor = layer.anchor
            if layer.plain and is_pointwise(anchor):
                front = front_of(anchor.args[0], views=True)
                if not front.upsample:
                    kind = anchor.target, len(shape_of(anchor)), bias_of(anchor) is not None
                    groups.setdefault((front.key, kind), []).append(layer)
        for group in groups.values():
            if len(group) > 1:
                self._together |= {layer.last: group for layer in group}

    def _find_concatenations(self) -> None:
        """Sources of a concatenation that can be written where they are wanted."""
        for node in self._traced.graph.nodes:
            if not _joins_channels(node):
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
        lazy = node.target in VIEWS | SPLITS or node.target is operator.getitem or _lazy(node)
        return node.op == "call_function" and not lazy and node.target is not aten.cat.default

    def _visit(self, node: fx.Node) -> None:
        if node.op != "call_function" or node in self._absorbed or node in self._refs or _lazy(node):
            return
        if node in self._together:
            self._siblings(self._together[node])
        elif node in self._layers:
            self._layer(self._layers[node])
        elif isinstance(node.meta.get("val"), Tensor) and node.target not in VIEWS | {operator.getitem}:
            self._compute(node)  # one of several values is computed when somebody asks for it

    def _compute(self, node: fx.Node) -> None:
        if _joins_channels(node):
            self._concatenate(node)
        elif is_norm(node):
            self._norm(node)
        elif not (self._attention(node) or self._resampling(node)):
            self._by_torch(node)

    def _by_torch(self, node: fx.Node) -> None:
        """An operator as it is; where it depends on parameters alone, when they change."""
        target: Any = node.target
        call, which = (node.args[0], node.args[1]) if target is operator.getitem else (node, None)
        assert isinstance(call, fx.Node)
        function: Any = call.target
        if draws(call) and function is not aten.scaled_dot_product_attention.default:
            raise UntraceableError(f"it draws random numbers: {function}")
        refs: Any = self._ref
        mapped: Any = fx.node.map_arg((call.args, call.kwargs), refs)
        args, kwargs = mapped
        if not any(ref.root.planned for ref in refs_in((args, tuple(kwargs.values())))):
            self._refs[node] = self._constant(node, function, args, kwargs, which)
            return
        out = self._refs[node] = self._new(node)
        name = str(function).removesuffix(".default")
        if len(out.shape) == 4 and out.meta.numel() > 4096:
            self.unfused.append(name)
        if target is aten.avg_pool2d.default:
            args = (self._dense(args[0]), *args[1:])  # or torch makes a copy of its own
        if target in _OUT:
            self.calls.append(Call(_OUT[target], tuple(args), {**kwargs, "out": out}, (out,), name))
        else:
            self._emit(copying, (out, partial(function, **kwargs), list(args), which), (out,), name)

    def _concatenate(self, node: fx.Node) -> None:
        parts: Any = node.args[0]
        sources = [self._ref(source) for source in parts]
        whole, at = self._whole(node), 0
        for ref in sources:
            part = self._part(whole, at, ref.shape[1])
            if not ref.same_as(part):  # it was not written there
                self._copied(ref, part)
            at += ref.shape[1]
        self._refs[node] = whole

    def _norm(self, node: fx.Node) -> None:
        """A norm whose value somebody wants."""
        a = norm_arguments(node)
        x, weight, bias, scale, shift = (self._optional(a[name]) for name in ("x", "weight", "bias", "scale", "shift"))
        out = self._refs[node] = self._new(node)
        settings = (weight, bias, None, scale, shift, a["groups"], float(a["eps"]), a["silu"])
        assert x is not None
        if len(x.shape) != 4:
            args = (out, native.group_norm_silu_fwd.default, [x, *settings], 0)
            self._emit(copying, args, (out,), "group_norm_silu")
            return
        whole = self._whole_image(out)
        x = x if _is_dense(x) else self._copied(x, whole)  # and then in place
        self._emit(native.group_norm_silu_into.default, (x, *settings, whole), (whole,), "group_norm_silu")
        self._put(whole, out)

    def _resampling(self, node: fx.Node) -> bool:
        """By a filter."""
        if node.target is not native.resample.default or not self._ref(node.args[0]).root.planned:
            return False
        x, taps, up, down, before, _, flip = node.args
        source, kernel = self._dense(self._ref(x)), self._ref(taps)
        out = self._refs[node] = self._new(node)
        whole = self._whole_image(out)
        self._emit(native.resample_into.default, (source, kernel, up, down, before, flip, whole), (whole,), "resample")
        self._put(whole, out)
        return True

    def _dense(self, image: Ref) -> Ref:
        """An image as pixel rows without gaps."""
        return image if _is_dense(image) else self._copied(image, self._image(image.shape))

    def _whole_image(self, out: Ref) -> Ref:
        """Where a kernel may write that knows no gaps; `_put` brings it to its place."""
        return out if _is_dense(out) else self._image(out.shape)

    def _put(self, whole: Ref, out: Ref) -> None:
        if whole is not out:
            self._copied(whole, out)

    def _attention(self, node: fx.Node) -> bool:
        """Scores, softmax and values; not where there is more to it."""
        if node.target is operator.getitem:
            call: Any = node.args[0]
            if call.target is not native.attention_fwd.default or node.args[1] != 0:
                return False
            q, k, v, residual, scale, output_scale, _ = call.args
            if residual is not None or output_scale != 1:
                return False
        elif node.target is aten.scaled_dot_product_attention.default:
            names = ("q", "k", "v", "attn_mask", "dropout_p", "is_causal")
            given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
            if given.get("attn_mask") is not None or given.get("is_causal") or given.get("enable_gqa"):
                return False
            if given.get("dropout_p"):
                raise UntraceableError("attention with dropout")
            q, k, v, scale = given["q"], given["k"], given["v"], given.get("scale")
        else:
            return False
        if len(shape_of(node)) != 4 or len({shape_of(n)[:2] + shape_of(n)[3:] for n in (q, k, v)}) > 1:
            return False
        inputs = [self._ref(value) for value in (q, k, v)]
        inputs = [r if r.meta.stride(3) == 1 else self._copied(r, self._fresh(r.shape)) for r in inputs]
        b, heads, n, d = shape_of(node)
        out = self._fresh((b, n, heads, d))
        out = self._refs[node] = out.view(out.meta.transpose(1, 2))
        scale = d**-0.5 if scale is None else float(scale)
        self._emit(native.attention_into.default, (*inputs, scale, out), (out,), "attention")
        return True


def _joins_channels(node: fx.Node) -> bool:
    """Whether a node concatenates images."""
    return node.target is aten.cat.default and node.args[1:] == (1,) and len(shape_of(node)) == 4


def _is_dense(image: Ref) -> bool:
    """Whether an image lies as pixel rows without gaps."""
    return image.meta.stride() == pixel_rows(image.shape).stride()


def _lazy(node: fx.Node) -> bool:
    """What is computed only where somebody asks for its value."""
    if node.target in (native.group_norm_silu_fwd.default, aten.silu.default):
        return True
    return is_norm(node) or enlarges(node) or padding_of(node) is not None

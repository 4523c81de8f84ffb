"""Where the values of a graph lie, and the calls that make them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastscore.engine.fuse import SPLITS, VIEWS, viewed
from fastscore.engine.trace import Traced, aten, shape_of
from fastscore.engine.values import Call, Ref, Root, pixel_rows, refs_in, replaced


class Writer:
    """Gives every node a place in memory, and collects calls.

    Attributes:
        calls: in order.
        placed: placeholder of an argument -> where the program wants it.
    """

    def __init__(self, traced: Traced):
        self.calls: list[Call] = []
        self.placed: dict[fx.Node, Ref] = {}
        self._traced = traced
        self._refs: dict[fx.Node, Ref] = {}
        self._joined: dict[fx.Node, tuple[fx.Node, int]] = {}  # source -> concatenation it may lie in, first channel
        self._wholes: dict[fx.Node, Ref] = {}  # places of concatenations

    def _compute(self, node: fx.Node) -> None:
        """Emit what computes a node."""
        raise NotImplementedError

    def _emit(self, function: Callable[..., Any], args: tuple[Any, ...], writes: tuple[Ref, ...], name: str) -> None:
        self.calls.append(Call(function, args, {}, writes, name))

    def _ref(self, node: Any) -> Ref:
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
            elif node.target is operator.getitem and node.args[0].target in SPLITS:
                split = node.args[0]
                source = self._ref(split.args[0])
                parts = split.target(source.meta, *split.args[1:], **split.kwargs)
                self._refs[node] = source.view(parts[node.args[1]])
            else:
                self._compute(node)
        return self._refs[node]

    def _optional(self, node: Any) -> Ref | None:
        return None if node is None else self._ref(node)

    def _viewed(self, node: fx.Node) -> Ref:
        source = self._ref(node.args[0])
        meta = viewed(source.meta, node)
        if meta is not None:
            return source.view(meta)
        target: Any = node.target  # torch would copy, too
        target = aten.reshape.default if target in (aten.view.default, aten._unsafe_view.default) else target
        if not source.root.planned:
            return self._constant(node, target, (source, *node.args[1:]), dict(node.kwargs))
        out = self._fresh(shape_of(node), source.meta.dtype)
        self._emit(copying, (out, target, [source, *node.args[1:]]), (out,), "copy")
        return out

    @staticmethod
    def _constant(node: fx.Node, target: Callable[..., Any], args: Any, kwargs: Any, which: Any = None) -> Ref:
        """What depends on parameters alone: made when they change, like transformed weights."""
        sources = tuple(refs_in((args, tuple(kwargs.values()))))

        def make(*tensors: Tensor) -> Tensor:
            given = dict(zip(sources, tensors, strict=True))
            result = target(*replaced(args, given.get), **{k: replaced(v, given.get) for k, v in kwargs.items()})
            return (result if which is None else result[which]).contiguous()

        meta = torch.empty(shape_of(node), dtype=node.meta["val"].dtype, device="meta")
        return Ref(Root(meta.dtype, whole=meta, sources=sources, pack=make), meta)

    def _fresh(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Ref:
        """Memory in the order of the dimensions."""
        return _planned(torch.empty(shape, dtype=dtype, device="meta"))

    def _image(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Ref:
        """Memory for pixel rows (B, C, H, W)."""
        return _planned(pixel_rows(shape, dtype))

    def _new(self, node: fx.Node) -> Ref:
        """Memory for the value of a node: pixel rows for images, in a concatenation where it goes into one."""
        shape, dtype = shape_of(node), node.meta["val"].dtype
        if node in self._joined:
            whole, first = self._joined[node]
            return self._part(self._whole(whole), first, shape[1])
        return self._image(shape, dtype) if len(shape) == 4 else self._fresh(shape, dtype)

    def _whole(self, node: fx.Node) -> Ref:
        """Where a concatenation lies."""
        if node not in self._wholes:
            self._wholes[node] = self._new(node)
        return self._wholes[node]

    @staticmethod
    def _part(whole: Ref, first: int, channels: int) -> Ref:
        return whole.view(whole.meta.narrow(1, first, channels))

    def _copied(self, ref: Ref, copy: Ref) -> Ref:
        """The same value in other memory."""
        self._emit(aten.copy_.default, (copy, ref), (copy,), "copy")
        return copy


def copying(out: Tensor, target: Callable[..., Any], args: list[Any], which: int | None = None) -> None:
    """An operator that makes its own result; `which` of several."""
    result = target(*args)
    out.copy_(result if which is None else result[which])


def _planned(meta: Tensor) -> Ref:
    return Ref(Root(meta.dtype, meta.numel()), meta)

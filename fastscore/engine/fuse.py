"""What a convolution or a linear layer can take with it: what stands in front of it, behind it, and beside it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastscore.engine.trace import aten, is_norm, shape_of
from fastscore.engine.values import as_pixels, as_rows, pixel_rows

VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.expand.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.narrow.default,
}
SPLITS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int}


@dataclass
class Layer:
    """A convolution or a linear layer, as one call will compute it.

    Attributes:
        anchor: its node.
        last: the node whose value the call writes.
        views: between the two: what only looks at the value in another shape.
        shift, residual: nodes that are added; (B, K, 1, 1), and of the shape of the value.
        scale: what the sum is multiplied by.
    """

    anchor: fx.Node
    last: fx.Node
    views: list[fx.Node] = field(default_factory=list)
    shift: fx.Node | None = None
    residual: fx.Node | None = None
    scale: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether nothing follows it."""
        return self.last is self.anchor


@dataclass
class Front:
    """What stands in front of a layer: views(silu(norm(base))), enlarged; each may be missing."""

    base: fx.Node
    norm: fx.Node | None = None
    silu: bool = False
    upsample: bool = False
    views: list[fx.Node] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for layers that read the same."""
        views = tuple((v.target, repr(v.args[1:])) for v in self.views)
        return self.base, self.norm, self.silu, self.upsample, views


def is_layer(node: fx.Node) -> bool:
    """Whether `conv3x3` or `conv_gemm` can compute it."""
    if not _float32(node):
        return False
    if node.target is aten.linear.default:
        return len(shape_of(node)) >= 2
    if node.target is not aten.conv2d.default:
        return False
    stride, padding, dilation, groups = conv_settings(node)
    kernel = shape_of(node.args[1])[2:]
    return (
        kernel in ((1, 1), (3, 3))
        and stride in ((1, 1), (2, 2))
        and dilation == (1, 1)
        and groups == 1
        and (padding == (0, 0) or (padding == (1, 1) and kernel == (3, 3)))
    )


def conv_settings(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """Stride, padding, dilation and groups of aten.conv2d.default."""
    values = list(node.args[3:]) + [None] * (7 - len(node.args))
    stride, padding, dilation = (
        (default, default) if value is None else (tuple(value) * 2)[:2]  # type: ignore[arg-type]
        for value, default in zip(values[:3], (1, 0, 1), strict=True)
    )
    return stride, padding, dilation, 1 if values[3] is None else values[3]  # type: ignore[return-value]


def is_pointwise(layer: fx.Node) -> bool:
    """Whether a layer computes each pixel from itself."""
    if layer.target is aten.linear.default:
        return True
    stride, padding, *_ = conv_settings(layer)
    return shape_of(layer.args[1])[2:] == (1, 1) and stride == (1, 1) and padding == (0, 0)


def bias_of(layer: fx.Node) -> Any:
    """The node of its bias, or None."""
    return layer.args[2] if len(layer.args) > 2 else None


def padding_of(node: fx.Node) -> int | None:
    """Rows and columns of zeros that a node puts in front of an image; None if it does something else."""
    if node.target not in (aten.pad.default, aten.constant_pad_nd.default) or node.kwargs:
        return None
    mode = node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
    value = node.args[-1] if isinstance(node.args[-1], int | float) else 0
    sides: Any = node.args[1]
    if mode != "constant" or value or len(sides) != 4 or min(sides) < 0 or sides[0] != sides[2]:
        return None
    return int(sides[0])


def viewed(meta: Tensor, node: fx.Node) -> Tensor | None:
    """What a view makes of a tensor; None where it would be a copy."""
    target: Any = node.target
    try:
        out: Tensor = target(meta, *node.args[1:], **node.kwargs)
    except RuntimeError:
        return None
    return out if out.untyped_storage()._cdata == meta.untyped_storage()._cdata else None


def rows_of(meta: Tensor) -> Tensor | None:
    """Images (B, C, H, W), and rows (..., C) of fewer dimensions, as pixels; None where they do not lie so."""
    return as_pixels(meta) if meta.dim() == 4 else as_rows(meta)


def layer_at(anchor: fx.Node, taken: Container[fx.Node]) -> Layer:
    """The layer with all that can follow it in one call, up to what another layer has taken."""
    layer, views = Layer(anchor, anchor), []
    current, shape = anchor, shape_of(anchor)
    image = anchor.target is aten.conv2d.default
    meta: Tensor | None = pixel_rows(shape) if image else torch.empty(shape, device="meta")  # as the call writes it
    while len(current.users) == 1:
        (user,) = current.users
        if user in taken:
            break
        if user.target in VIEWS and user.args[0] is current and _numel(user) == _numel(current):
            views.append(user)
            meta = None if meta is None else viewed(meta, user)
        elif views and not _keeps_pixels(meta, shape[1 if image else -1]):
            break
        elif user.target is aten.add.Tensor and not user.kwargs and _added(layer, current, user, bool(views)):
            layer.last, layer.views = user, list(views)
        elif user.target in (aten.mul.Tensor, aten.div.Tensor) and isinstance(user.args[1], int | float):
            factor = float(user.args[1])
            layer.scale *= factor if user.target is aten.mul.Tensor else 1 / factor
            layer.last, layer.views = user, list(views)
        else:
            break
        current = user
    return layer


def _keeps_pixels(meta: Tensor | None, outputs: int) -> bool:
    """Whether what a layer writes is still pixels of all its outputs, without gaps."""
    rows = None if meta is None else rows_of(meta)
    return rows is not None and rows.shape[1] == rows.stride(3) == outputs


def _added(layer: Layer, current: fx.Node, user: fx.Node, viewed: bool) -> bool:
    """Take an addition into the layer, if it is one of the two that the kernels know."""
    other = user.args[1] if user.args[0] is current else user.args[0]
    if not isinstance(other, fx.Node) or other is current or layer.scale != 1 or not _float32(other):
        return False
    shape, result = shape_of(other), shape_of(user)
    if result != shape_of(current) or layer.residual is not None:
        return False
    if shape == result:
        layer.residual = other
        return True
    if viewed or layer.shift is not None or layer.anchor.target is not aten.conv2d.default:
        return False
    if shape not in ((result[0], result[1], 1, 1), (1, result[1], 1, 1)):
        return False
    layer.shift = other
    return True


def front_of(node: Any, *, views: bool) -> Front:
    """What stands in front of a layer that reads `node`; `views`: whether it reads single pixels, in any shape."""
    front = Front(node)
    while front.norm is None:
        current = front.base
        if views and not front.upsample and current.target in VIEWS and _numel(current) == _numel(current.args[0]):
            front.views.insert(0, current)
            front.base = current.args[0]  # type: ignore[assignment]
        elif not front.views and not front.upsample and enlarges(current):
            front.upsample = True
            front.base = current.args[0]  # type: ignore[assignment]
        elif current.target is aten.silu.default and not front.silu:
            front.silu = True
            front.base = current.args[0]  # type: ignore[assignment]
        elif is_norm(current) and not (front.silu and norm_arguments(current)["silu"]):
            front.norm = current
            arguments = norm_arguments(current)
            front.silu |= arguments["silu"]
            front.base = arguments["x"]
        else:
            break
    return front


def enlarges(node: fx.Node) -> bool:
    """Whether a node doubles rows and columns by nearest neighbor."""
    if node.target not in (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default):
        return False
    before, after = shape_of(node.args[0]), shape_of(node)
    return after[2:] == (2 * before[2], 2 * before[3])


def norm_arguments(node: fx.Node) -> dict[str, Any]:
    """x, groups, eps, weight, bias, scale, shift and silu of a norm."""
    if node.target is aten.group_norm.default:
        names = ("x", "groups", "weight", "bias", "eps")
        given = dict(zip(names, node.args, strict=False))
        defaults = {"weight": None, "bias": None, "eps": 1e-5, "scale": None, "shift": None, "silu": False}
        return defaults | given
    x, weight, bias, _, scale, shift, groups, eps, silu = node.args[0].args  # type: ignore[union-attr]
    return {
        "x": x, "groups": groups, "eps": eps, "weight": weight, "bias": bias, "scale": scale, "shift": shift,
        "silu": silu,
    }  # fmt: skip


def _numel(node: Any) -> int:
    return int(node.meta["val"].numel())


def _float32(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.dtype is torch.float32

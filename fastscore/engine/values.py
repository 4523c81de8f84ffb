"""What a program is made of: roots of memory, references into them, and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Root:
    """Memory that references point into.

    Attributes:
        get: gives the tensor, for what the network or a table holds; None for memory that the program plans.
        whole: meta tensor of what `get` or `pack` gives, where references see parts of it.
        dtype: of planned memory.
        elements: its size.
        sources: what `pack` takes.
        pack: makes it anew when parameters have changed: transformed weights, and all that depends on parameters alone.
    """

    dtype: torch.dtype
    elements: int = 0
    get: Callable[[], Tensor] | None = None
    whole: Tensor | None = None
    sources: tuple[Ref, ...] = ()
    pack: Callable[..., Tensor] | None = None

    @property
    def planned(self) -> bool:
        """Whether a place in the arena has to be found."""
        return self.get is None and self.pack is None


@dataclass(frozen=True, eq=False)
class Ref:
    """A tensor: `meta`, on the meta device, has its shape and strides, and its offset in the root."""

    root: Root
    meta: Tensor

    def view(self, meta: Tensor) -> Ref:
        """Other shape and strides of the same memory."""
        return Ref(self.root, meta)

    def same_as(self, other: Ref) -> bool:
        """Whether both are the same elements of the same memory."""
        here, there = ((m.shape, m.stride(), m.storage_offset()) for m in (self.meta, other.meta))
        return self.root is other.root and here == there

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.meta.shape)


@dataclass
class Call:
    """One operation.

    Attributes:
        function: what is called.
        args, kwargs: its arguments, in which references stand for tensors.
        writes: those that it writes; it returns nothing of use.
        name: for the report.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    writes: tuple[Ref, ...] = ()
    name: str = ""

    def refs(self) -> Iterator[Ref]:
        """All that it reads or writes, packed weights included."""
        yield from self.writes
        for value in (*self.args, *self.kwargs.values()):
            yield from refs_in(value)


def refs_in(value: Any) -> Iterator[Ref]:
    """The references in an argument."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)


def replaced(value: Any, by: Callable[[Ref], Any]) -> Any:
    """An argument with something in the place of its references."""
    if isinstance(value, Ref):
        return by(value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, by) for item in value)
    return value


def pixel_rows(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Meta tensor (B, C, H, W), channels last."""
    b, c, h, w = shape
    return torch.empty_strided((b, c, h, w), (h * w * c, 1, w * c, c), dtype=dtype, device="meta")


def as_pixels(meta: Tensor) -> Tensor | None:
    """(B, C, H, W) with channels side by side and pixels at one distance, or None; sizes of 1 get such strides."""
    if meta.dim() != 4 or not meta.numel():
        return None
    b, c, h, w = meta.shape
    s_b, s_c, s_h, s_w = meta.stride()
    ld = s_w if w > 1 else s_h if h > 1 else s_b if b > 1 else c
    fits = (c == 1 or s_c == 1) and ld >= c and (h == 1 or s_h == w * ld) and (b == 1 or s_b == h * w * ld)
    return pixels(meta, (b, c, h, w), ld) if fits else None


def as_rows(meta: Tensor) -> Tensor | None:
    """(..., C) as an image (B, C, H, W) of pixel rows, or None."""
    if meta.dim() == 2:
        return as_pixels(meta[None, None].permute(0, 3, 1, 2))
    if meta.dim() == 3:
        return as_pixels(meta[:, None].permute(0, 3, 1, 2))
    return as_pixels(meta.permute(0, 3, 1, 2)) if meta.dim() == 4 else None


def pixels(meta: Tensor, shape: tuple[int, ...], ld: int) -> Tensor:
    """The same pixels, cut into images of another shape."""
    _, _, h, w = shape
    return torch.as_strided(meta, shape, (h * w * ld, 1, w * ld, ld), meta.storage_offset())

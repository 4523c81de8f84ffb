"""States as the step kernels see them: every sample dense in one of two orders, samples a stride apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._philox import normal4

BLOCK = 2048  # elements to a program


class Layout(NamedTuple):
    """The order of the elements of a sample in memory: `pixels` rows of `channels`, and channels = 1 if contiguous."""

    pixels: int
    channels: int

    @property
    def size(self) -> int:
        return self.pixels * self.channels

    @property
    def tiles(self) -> int:
        """Programs to a sample."""
        return triton.cdiv(-(-self.size // 4), BLOCK // 4)


class Operand(NamedTuple):
    """A tensor (B, ...) whose samples have the layout, and the distance of its samples in elements."""

    tensor: Tensor
    stride: int


def layout_of(x: Tensor) -> Layout | None:
    """The layout of the samples of x, or None where they have neither."""
    if _dense(x, range(x.ndim - 1, 0, -1)):
        return Layout(math.prod(x.shape[1:]), 1)
    if x.ndim > 2 and _dense(x, (1, *range(x.ndim - 1, 1, -1))):
        return Layout(math.prod(x.shape[2:]), x.shape[1])
    return None


def operand(tensor: Tensor, layout: Layout) -> Operand:
    """The tensor in a layout: itself, or a copy."""
    if layout_of(tensor) != layout:
        last = layout.channels > 1
        tensor = tensor.movedim(1, -1).contiguous().movedim(-1, 1) if last else tensor.contiguous()
    return Operand(tensor, layout.size if tensor.shape[0] == 1 else tensor.stride(0))


def one_by_one(operands: Sequence[Operand], most: int) -> tuple[Tensor | int | None, ...]:
    """Up to `most` operands as a kernel takes them, tensors before strides: torch.compile sees no tensor in a tuple."""
    missing = [None] * (most - len(operands))
    return *(o.tensor for o in operands), *missing, *(o.stride for o in operands), *missing


def warps(x: Tensor, layout: Layout) -> int:
    """Of a program: few enough that a thread has 16 bytes of a contiguous tensor, with 64 threads to a warp as well."""
    return max(BLOCK * x.element_size() // 1024, 4 if layout.channels == 1 else 8)


def tile_options(x: Tensor, layout: Layout) -> dict[str, int]:
    """What every kernel over tiles of states like x is compiled for."""
    return {"wide": layout.size >= 2**31 - 4 * BLOCK, "block": BLOCK, "num_warps": warps(x, layout)}


def like(x: Tensor) -> Tensor:
    """An uninitialized tensor: strides of x where x is dense, else contiguous."""
    dense = x.numel() > 0 and _no_gaps(x)
    return x.new_empty_strided(x.shape, x.stride()) if dense else x.new_empty(x.shape)


def empty(x: Tensor, layout: Layout) -> Tensor:
    """An uninitialized tensor of the shape of x in a layout."""
    if layout.channels == 1:
        return x.new_empty(x.shape)
    return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1])).movedim(-1, 1)


def rows_of(coefficients: Tensor) -> tuple[Tensor, int]:
    """Coefficients with their columns side by side, and the distance of two rows: 0 where all samples share one."""
    rows = coefficients if coefficients.stride(-1) == 1 else coefficients.contiguous()
    return rows, rows.stride(0) if rows.ndim == 2 else 0


def without_noise(layout: Layout, batch: int, shared: bool, operands: Sequence[Operand]) -> tuple[Layout, int]:
    """Layout and number of the samples where no noise is drawn: their elements can be taken as they lie in memory.

    Nothing tells them apart where they share a row of coefficients: they are one where they lie one behind the other.
    """
    if shared and all(o.stride == layout.size for o in operands):
        return Layout(batch * layout.size, 1), 1
    return Layout(layout.size, 1), batch


def safe_to_read(read: Tensor, written: Tensor) -> Tensor:
    """`read` as an op in place may read it while it writes `written`: a copy where they share memory in another way.

    Raises:
        RuntimeError: both are dense, and overlap in part.
    """
    if read is written or not _share_storage(read, written):
        return read
    same_place = read.storage_offset() == written.storage_offset()
    if same_place and read.shape == written.shape and read.stride() == written.stride():
        return read
    if _overlap(read, written):
        raise RuntimeError("an operand shares memory with the tensor that is written, in part; clone() it before")
    return read if _no_gaps(read) and _no_gaps(written) else read.clone()


def check_apart(written: Tensor, read: Iterable[Tensor]) -> None:
    """A second result has memory of its own.

    Raises:
        RuntimeError: it is dense, and overlaps a dense one of the others.
    """
    for other in read:
        if _share_storage(written, other) and _overlap(written, other):
            raise RuntimeError("a result shares memory with an operand; give it memory of its own")


def _share_storage(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and storage overlap; False where they are not dense, and it cannot be told."""
    distance = abs(int(one.storage_offset()) - int(other.storage_offset()))
    return distance < one.numel() and _no_gaps(one) and _no_gaps(other)


def _no_gaps(x: Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def _dense(x: Tensor, dims: range | tuple[int, ...]) -> bool:
    expected = 1
    for d in dims:
        if x.shape[d] != 1:
            if x.stride(d) != expected:
                return False
            expected *= x.shape[d]
    return True


@triton.jit
def tile(number, pixels, channels: tl.constexpr, wide: tl.constexpr, block: tl.constexpr):
    """Tile `number` of a sample of pixels * channels elements.

    Returns:
        The Philox blocks that its noise is in (block / 4,), where its elements lie in memory, and which of them there
        are: (block,) in contiguous samples, else (block / 4, 4).
    """
    index = tl.arange(0, block // 4)
    lane = tl.arange(0, 4)
    if wide:
        index, lane, number = index.to(tl.int64), lane.to(tl.int64), number.to(tl.int64)
        pixels = pixels.to(tl.int64)
    index += number * (block // 4)
    if channels == 1:
        offset = number * block + tl.arange(0, block)
        there = offset < pixels
    else:
        if pixels % 4 == 0:
            # neighboring threads take neighboring channels of the same four pixels, which are one block of noise
            last = pixels // 4 * channels
            index = tl.where(index < last, (index % channels) * (pixels // 4) + index // channels, last)
        logical = index[:, None] * 4 + lane[None, :]
        offset = (logical % pixels) * channels + logical // pixels
        there = logical < pixels * channels
    return index, offset, there


@triton.jit
def drawn(rng, samples, sample, blocks, shape: tl.constexpr, dtype: tl.constexpr):
    """The noise of a tile: normals in the shape of its offsets. rng, samples: pointers; sample: the row."""
    normals = normal4(tl.load(rng), tl.load(rng + 1), tl.load(samples + sample), blocks, dtype)
    return tl.reshape(normals, shape)

"""What the kernels of attention share: blocks of rows in pieces and slices, and the plan that cuts them."""

# Tuples of tiles grow in unrolled loops, and Triton knows no `*tuple`.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, sums, precision: tl.constexpr):
    if INTERPRETED and a.dtype == tl.bfloat16:  # numpy has no bfloat16; products of two are exact in float32
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=precision)


@triton.jit
def load_block(
    pointer,
    start,
    stride,
    limit,
    block: tl.constexpr,
    first,
    piece: tl.constexpr,
    size: tl.constexpr,
    even: tl.constexpr,
    wide: tl.constexpr,
):
    """Rows start ... start + block of a matrix, and the columns of a piece from `first` on; 0 beyond its end.

    even: all of these rows are below `limit`.
    """
    rows = tl.arange(0, block)
    columns = first + piece[0] + tl.arange(0, piece[1])
    places = pointer + tl.cast(start, tl.int64) * stride + (widened(rows, wide) * stride)[:, None] + columns[None, :]
    if even and not piece[2]:
        tile = tl.load(places)
    elif even:
        tile = tl.load(places, columns[None, :] < size, 0.0)
    elif not piece[2]:
        tile = tl.load(places, rows[:, None] < limit - start, 0.0)
    else:
        tile = tl.load(places, (rows[:, None] < limit - start) & (columns[None, :] < size), 0.0)
    return tile


@triton.jit
def load_all(
    pointer,
    start,
    stride,
    limit,
    block: tl.constexpr,
    first,
    pieces: tl.constexpr,
    size: tl.constexpr,
    even: tl.constexpr,
    wide: tl.constexpr,
):
    tiles = ()
    for i in tl.static_range(len(pieces)):
        tiles = tiles + (load_block(pointer, start, stride, limit, block, first, pieces[i], size, even, wide),)
    return tiles


@triton.jit
def zeros(block: tl.constexpr, pieces: tl.constexpr, dtype: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(pieces)):
        tiles = tiles + (tl.zeros((block, pieces[i][1]), dtype),)
    return tiles


@triton.jit
def dots(weights, tiles, sums, precision: tl.constexpr):
    """sums + weights @ tiles, piece by piece."""
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (dot(weights, tiles[i], sums[i], precision),)
    return result


@triton.jit
def scaled(tiles, factor):
    """Each row times its factor."""
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (tiles[i] * factor[:, None],)
    return result


@triton.jit
def minus(tiles, others, factor):
    """tiles - factor others, a factor to each row."""
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (tiles[i] - factor[:, None] * others[i],)
    return result


@triton.jit
def store_block(
    pointer,
    start,
    stride,
    limit,
    tiles,
    block: tl.constexpr,
    first,
    pieces: tl.constexpr,
    size: tl.constexpr,
    wide: tl.constexpr,
):
    """The opposite of `load_all`."""
    rows = tl.arange(0, block)
    for i in tl.static_range(len(pieces)):
        columns = first + pieces[i][0] + tl.arange(0, pieces[i][1])
        places = (
            pointer + tl.cast(start, tl.int64) * stride + (widened(rows, wide) * stride)[:, None] + columns[None, :]
        )
        there = rows[:, None] < limit - start
        if pieces[i][2]:
            there = there & (columns[None, :] < size)
        tl.store(places, tiles[i].to(pointer.dtype.element_ty), there)


@triton.jit
def finish(
    y,
    start,
    stride,
    limit,
    tiles,
    residual,
    residual_strides,
    output_scale: tl.constexpr,
    block: tl.constexpr,
    first,
    pieces: tl.constexpr,
    size: tl.constexpr,
    wide: tl.constexpr,
):
    """y = output_scale * (tiles + residual), stored. The residual has strides of rows and of columns."""
    result = ()
    rows = tl.arange(0, block)
    for i in tl.static_range(len(pieces)):
        tile = tiles[i]
        if residual is not None:
            columns = first + pieces[i][0] + tl.arange(0, pieces[i][1])
            places = residual + tl.cast(start, tl.int64) * residual_strides[2]
            places = places + (widened(rows, wide) * residual_strides[2])[:, None]
            places = places + (widened(columns, wide) * residual_strides[3])[None, :]
            there = (rows[:, None] < limit - start) & (columns[None, :] < size)
            tile += tl.load(places, there, 0.0).to(tile.dtype)
        result = result + (tile * output_scale,)
    store_block(y, start, stride, limit, result, block, first, pieces, size, wide)


@triton.jit
def widened(index, wide: tl.constexpr):
    if wide:
        result = index.to(tl.int64)
    else:
        result = index
    return result


@triton.jit
def head_of(pointer, sample, head, strides):
    """Where the matrix of a sample and a head begins."""
    return pointer + sample * strides[0] + head * strides[1]


def like_q(q: Tensor) -> Tensor:
    """An uninitialized result: dense in the order of q, but with the columns contiguous."""
    result = torch.empty_like(q)
    return result if result.stride(-1) == 1 else q.new_empty(q.shape)


def sums_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its columns are apart."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def operands_of(*tensors: Tensor | None) -> list[Any]:
    """Each tensor with its strides of samples, heads and rows."""
    return [part for t in tensors for part in (t, (0, 0, 0) if t is None else t.stride()[:3])]


def is_wide(*tensors: Tensor | None) -> bool:
    """Whether offsets within a block of rows can pass 2^31."""
    return any(s >= 2**22 for t in tensors if t is not None for s in t.stride()[2:])


def pieces_of(size: int, largest: int) -> tuple[tuple[int, int, bool], ...]:
    """`size` columns as powers of two of 16 or more: of each its start, its width, and whether it ends beyond."""
    pieces = []
    start = 0
    while start < size:
        width = largest
        while width > 16 and width > size - start and size - start <= width - width // 4:
            width //= 2
        pieces.append((start, width, start + width > size))
        start += width
    return tuple(pieces)


class Plan(NamedTuple):
    """How a kernel is cut.

    Attributes:
        block_n, block_m: queries and keys of a block.
        piece: the widest piece of the head dimension; a power of two.
        width: columns of a slice; a power of two. A head dimension up to this is not sliced.
        resident: whether the block that a program holds stays in registers and shared memory, or is read again.
        warps, stages: of a program, and of its loads ahead.
    """

    block_n: int
    block_m: int
    piece: int
    width: int
    resident: bool
    warps: int
    stages: int


def plan_of(kind: str, size: int, itemsize: int) -> Plan:
    """A function of the head dimension and the dtype alone: what fits in registers and 99 KB of shared memory."""
    if itemsize == 8:
        return Plan(16, 16, 16, 32, False, 4, 1)
    if itemsize == 4:  # no tensor cores: operands lie in registers as well
        if kind == "fwd":
            return Plan(32, 32, 16, 128, True, 4, 1) if size <= 128 else Plan(32, 16, 16, 128, False, 4, 1)
        if size <= 64:
            return Plan(32, 16 if kind == "jvp" else 32, 16, 64, True, 4, 1)
        return Plan(32, 16, 16, 32, False, 4, 1)
    if size <= 64:
        return Plan(64, 32 if kind == "jvp" else 64, 64, 256, True, 4, 2)
    if size <= 96 and kind.startswith("grad"):  # two pieces
        return Plan(32, 64, 128, 256, True, 8, 2)
    if size <= 128 and kind == "jvp":
        return Plan(64, 32, 128, 256, True, 8, 2)
    if size <= 128:
        return Plan(64, 64, 128, 256, True, 4 if kind == "fwd" else 8, 2)
    if size <= 256 and kind == "fwd":
        return Plan(64, 32, 128, 256, True, 8, 2)
    if size < 256:  # several pieces, with two results each, take too many registers
        return Plan(32, 32, 128, 128, True, 4, 1)
    if size == 256:
        return Plan(32, 32, 128, 256, True, 8, 1)
    return Plan(64 if kind == "fwd" else 32, 32, 64, 256, False, 8, 1)


def config(kind: str, q: Tensor, n: int, m: int) -> dict[str, Any]:
    """What a kernel is compiled for: like its rounding, a function of the shape of a sample and the dtype alone."""
    size = q.shape[-1]
    plan = plan_of(kind, size, q.element_size())
    slices = triton.cdiv(size, plan.width)
    pieces = pieces_of(size, plan.piece)
    return {
        "size": size,
        "pieces": pieces,
        "columns": pieces if slices == 1 else ((0, plan.width, size % plan.width != 0),),
        "slices": slices,
        "resident": plan.resident,
        "precision": precision_of(q),
        "block_n": min(plan.block_n, max(16, triton.next_power_of_2(n))),
        "block_m": min(plan.block_m, max(16, triton.next_power_of_2(m))),
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }


def precision_of(q: Tensor) -> str:
    """How products of float32 are taken: TF32 only where torch is allowed to, too."""
    return "tf32" if q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"

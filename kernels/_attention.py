"""What the kernels of attention share: blocks of rows in pieces and slices."""

# Tuples of tiles grow in unrolled loops, and Triton knows no `*tuple`.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import math
import os
from typing import Any

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
    return tl.dot(a, b, sums, input_precision=precision, out_dtype=sums.dtype)


@triton.jit
def load_block(
    pointer,
    start,
    strides,
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
    places = places_of(pointer, start, strides, rows, wide) + columns[None, :]
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
    strides,
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
        tiles = tiles + (load_block(pointer, start, strides, limit, block, first, pieces[i], size, even, wide),)
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
    strides,
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
        places = places_of(pointer, start, strides, rows, wide) + columns[None, :]
        there = rows[:, None] < limit - start
        if pieces[i][2]:
            there = there & (columns[None, :] < size)
        tl.store(places, tiles[i].to(pointer.dtype.element_ty), there)


@triton.jit
def finish(
    y,
    start,
    strides,
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
    """y = output_scale * (tiles + residual), stored. The strides of the residual end with that of its columns."""
    result = ()
    rows = tl.arange(0, block)
    for i in tl.static_range(len(pieces)):
        tile = tiles[i]
        if residual is not None:
            columns = first + pieces[i][0] + tl.arange(0, pieces[i][1])
            places = places_of(residual, start, residual_strides, rows, wide)
            places = places + (widened(columns, wide) * residual_strides[4])[None, :]
            there = rows[:, None] < limit - start
            if pieces[i][2]:
                there = there & (columns[None, :] < size)
            tile += tl.load(places, there, 0.0).to(tile.dtype)
        result = result + (tile * output_scale,)
    store_block(y, start, strides, limit, result, block, first, pieces, size, wide)


@triton.jit
def places_of(pointer, start, strides, rows, wide: tl.constexpr):
    """Where rows start + rows of a matrix begin, (rows, 1)."""
    stride = strides[2] * strides[3]
    return pointer + tl.cast(start, tl.int64) * stride + (widened(rows, wide) * stride)[:, None]


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
    return pointer + (sample * strides[0] + head * strides[1]) * strides[3]


def like_q(q: Tensor) -> Tensor:
    """An uninitialized result: dense in the order of q, but with the columns contiguous."""
    result = torch.empty_like(q)
    return result if result.stride(-1) == 1 else q.new_empty(q.shape)


def sums_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def readable(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its columns are apart."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def strides_of(tensor: Tensor | None) -> tuple[Any, ...]:
    """Strides of samples, heads and rows in units; the unit, that the compiler knows it; the stride of columns.

    What is known of runtime integers is whether 16 divides them: not of 40, whose rows would be read by single numbers.
    """
    *strides, columns = (0, 0, 0, 0) if tensor is None else tensor.stride()
    unit = math.gcd(16, *strides)
    return (*(stride // unit for stride in strides), tl.constexpr(unit), columns)


def operands_of(*tensors: Tensor | None) -> list[Any]:
    """Each tensor with its strides."""
    return [part for t in tensors for part in (t, strides_of(t))]


def is_wide(*tensors: Tensor | None) -> bool:
    """Whether offsets within a block of rows can pass 2^31."""
    return any(s >= 2**22 for t in tensors if t is not None for s in t.stride()[2:])

"""The error estimate of an adaptive solver: the scaled linear combination and its square in one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._states import Layout, layout_of, operand, rows_of, tile, tile_options
from ._sums import extent, row_sums


@triton.jit
def error_norm_kernel(
    sums,
    tensors,
    strides,
    coefficients,
    coefficient_stride,
    atol: tl.float64,
    rtol: tl.float64,
    size,
    tiles,
    terms: tl.constexpr,
    of_u: tl.constexpr,
    of_v: tl.constexpr,
    larger: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """sums = squares of e / scale added up over every tile, one program each.

    e = sum_k c_k tensors_k, k < terms; scale = atol + rtol max(|u|, |v|), where larger max(atol, rtol max(|u|, |v|));
    u and v are tensors number of_u and of_v.
    """
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    _, offset, there = tile(program % tiles, size, 1, wide, block)
    row = coefficients + sample * coefficient_stride
    dtype: tl.constexpr = coefficients.dtype.element_ty
    error, largest = tl.zeros((block,), dtype), tl.zeros((block,), dtype)
    for k in tl.static_range(len(tensors) - 1, -1, -1):  # the last first takes fewer registers
        value = tl.load(tensors[k] + sample * strides[k] + offset, there, 0.0).to(dtype)
        if k < terms:
            error += tl.load(row + k) * value
        if (k == of_u) | (k == of_v):
            largest = tl.maximum(largest, tl.abs(value), propagate_nan=tl.PropagateNan.ALL)
    relative = tl.full((), rtol, dtype) * largest
    if larger:
        scale = tl.maximum(tl.full((), atol, dtype), relative, propagate_nan=tl.PropagateNan.ALL)
    else:
        scale = tl.full((), atol, dtype) + relative
    # No error is none at any scale. 0 * scale is NaN where the scale is not finite, which would make the ratio small.
    ratio = tl.where(error == 0, 0.0, _divided(error, scale, dtype)) + 0 * scale
    square = ratio.to(tl.float64) * ratio.to(tl.float64)
    tl.store(sums + program, tl.sum(square))


@triton.jit
def _divided(a, b, dtype: tl.constexpr):
    if dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def error_norm_roots_kernel(norms, sums, tiles, batch, size: tl.float64, lines: tl.constexpr, columns: tl.constexpr):
    """norms = the root of the mean over a sample of `size` elements; a program does `lines` samples."""
    first = tl.program_id(0) * lines
    total = row_sums(sums, first, batch, tiles, lines, columns)
    sample = first + tl.arange(0, lines)
    tl.store(norms + sample, tl.sqrt(total / size).to(norms.dtype.element_ty), sample < batch)


def error_norm(
    terms: Sequence[Tensor], coefficients: Tensor, u: Tensor, v: Tensor, atol: float, rtol: float, kind: str
) -> Tensor:
    """`fastscore.ops.error_norm`, its arguments checked."""
    batch = u.shape[0]
    if u.numel() == 0:
        return coefficients.new_zeros(batch)
    layout = layout_of(u) or Layout(math.prod(u.shape[1:]), 1)
    tensors = list(terms)
    # One tensor in several places is read once.
    of_u, of_v = (_place(tensors, other) for other in (u, v))
    operands = [operand(tensor, layout) for tensor in tensors]
    rows, row_stride = rows_of(coefficients)
    layout = Layout(layout.size, 1)  # the elements are taken as they lie in memory
    tiles = layout.tiles
    sums = u.new_empty(batch, tiles, dtype=torch.float64)
    norms = rows.new_empty(batch)
    launch(
        error_norm_kernel,
        batch * tiles,
        u.device,
        sums,
        tuple(o.tensor for o in operands),
        tuple(o.stride for o in operands),
        rows,
        row_stride,
        atol,
        rtol,
        layout.size,
        tiles,
        terms=len(terms),
        of_u=of_u,
        of_v=of_v,
        larger=kind == "max",
        **tile_options(u, layout),
    )
    lines, columns = extent(tiles)
    launch(
        error_norm_roots_kernel,
        triton.cdiv(batch, lines),
        u.device,
        norms,
        sums,
        tiles,
        batch,
        float(layout.size),
        lines=lines,
        columns=columns,
        num_warps=4,
    )
    return norms


def _place(tensors: list[Tensor], tensor: Tensor) -> int:
    """Where a tensor is among others; at the end, if it was not."""
    for k, other in enumerate(tensors):
        if other is tensor:
            return k
    tensors.append(tensor)
    return len(tensors) - 1

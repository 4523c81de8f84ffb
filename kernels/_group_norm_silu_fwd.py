"""group_norm_silu: the value."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._group_norm_silu import (
    Call,
    affine,
    channels_of,
    chunk_of,
    divide,
    groups_of,
    load_sum,
    over_group,
    over_parts,
    pixels_of,
    place,
    rows_of,
    sigmoid,
    to_rows,
)
from ._launch import launch


@triton.jit
def moments(z, there, count, tile: tl.constexpr):
    """The statistics of a tile of z by the corrected two-pass algorithm (Chan, Golub & LeVeque 1983, eq. 1.7).

    Returns:
        anchor and shift (tile.groups,), whose sum is the mean; z - anchor; the sum of (z - mean)^2 (tile.groups,).
    """
    anchor = divide(over_group(z, tile), count)
    deviation = tl.where(there, z - to_rows(anchor, tile)[:, None], 0)
    residue = over_group(deviation, tile)  # what rounding the sum left
    shift = divide(residue, count)
    squares = over_group(deviation * deviation, tile) - residue * shift
    return anchor, shift, deviation, tl.where(squares < 0, 0, squares)


@triton.jit
def reciprocal_deviation(squares, count, eps: tl.constexpr):
    """1 / sqrt(variance + eps)."""
    variance = divide(squares, count) + eps
    if variance.dtype == tl.float32:
        deviation = tl.sqrt_rn(variance)
    else:
        deviation = tl.sqrt(variance)
    return divide(tl.full(variance.shape, 1, variance.dtype), deviation)


@triton.jit
def store_value(y, offset, there, deviation, shift, rstd, alpha, beta, silu: tl.constexpr):
    """y = silu(alpha (deviation - shift) rstd + beta); shift and rstd: (rows,) or (1,), alpha and beta: (rows,)."""
    slope = alpha * rstd
    v = deviation * slope[:, None] + (beta - shift * slope)[:, None]
    if silu:
        v *= sigmoid(v)
    tl.store(y + offset, v.to(y.dtype.element_ty), there)


@triton.jit
def group_norm_silu_fwd_kernel(
    y,
    x,
    x_stride,
    parameters,
    strides,
    mean,
    rstd,
    pixels,
    eps: tl.constexpr,
    silu: tl.constexpr,
    tile: tl.constexpr,
):
    """One pass: the groups of a program stay in registers between the statistics and the result."""
    program = tl.program_id(0)
    sample, block = (program // tile.blocks).to(tl.int64), program % tile.blocks
    dtype: tl.constexpr = mean.dtype.element_ty
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    start, offset, there = place(block, 0, 0, pixels, tile)
    first, row, known = channels_of(block, 0, tile)
    channel = first + row
    x += sample * x_stride * tile.stride_unit + start
    z = load_sum(x, offset, there, parameters[2], strides[2], sample, channel, known, dtype, "")
    count = tile.group_channels * pixels.to(dtype)
    anchor, shift, deviation, squares = moments(z, there, count, tile)
    scale = reciprocal_deviation(squares, count, eps)
    alpha, beta = affine(parameters, strides, sample, channel, known, dtype)
    y += sample * tile.sample_channels * pixels + start
    store_value(y, offset, there, deviation, to_rows(shift, tile), to_rows(scale, tile), alpha, beta, silu)
    group, real = groups_of(block, tile)
    tl.store(mean + sample * tile.sample_groups + group, anchor + shift, real)
    tl.store(rstd + sample * tile.sample_groups + group, scale, real)


@triton.jit
def group_norm_silu_fwd_partials_kernel(
    partial, x, x_stride, add, add_stride, pixels, steps, ranges, dtype: tl.constexpr, tile: tl.constexpr
):
    """Mean and sum of squared deviations of a chunk; partial: (2, N, groups, chunks)."""
    sample, block, sub, part = chunk_of(tl.program_id(0), ranges, tile)
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    x += sample * x_stride * tile.stride_unit
    first, row, known = channels_of(block, sub, tile)
    height = tl.minimum(tile.group_channels - sub * tile.channels, tile.channels).to(dtype)
    begin, end = pixels_of(part, steps, pixels, tile)
    mean = tl.full((tile.groups,), 0, dtype)
    squares = tl.full((tile.groups,), 0, dtype)
    count = height * 0
    for pixel in range(begin, end, tile.pixels):
        start, offset, there = place(block, sub, pixel, pixels, tile)
        z = load_sum(x + start, offset, there, add, add_stride, sample, first + row, known, dtype, "")
        more = height * tl.minimum(end - pixel, tile.pixels).to(dtype)
        anchor, shift, _, more_squares = moments(z, there, more, tile)
        # Chan, Golub & LeVeque 1979, eqs. 2.1
        apart = anchor + shift - mean
        share = divide(more, count + more)
        mean += apart * share
        squares += more_squares + apart * apart * (count * share)
        count += more
    group, real = groups_of(block, tile)
    chunks = tile.subs * ranges
    plane = (tl.num_programs(0) // (tile.blocks * chunks)).to(tl.int64) * (tile.sample_groups * chunks)
    partial += (sample * tile.sample_groups + group) * chunks + sub * ranges + part
    tl.store(partial, mean, real)
    tl.store(partial + plane, squares, real)


@triton.jit
def combined(partial, plane, sample, block, pixels, steps, ranges, width: tl.constexpr, tile: tl.constexpr):
    """The statistics of whole groups out of those of their chunks, always in the same order.

    Returns:
        anchor and shift (tile.groups,), whose sum is the mean, and the sum of (z - mean)^2.
    """
    dtype: tl.constexpr = partial.dtype.element_ty
    group, real = groups_of(block, tile)
    chunks = tile.subs * ranges
    partial += (sample * tile.sample_groups + group) * chunks
    anchor = tl.load(partial, real, 0)
    total = tile.group_channels * pixels.to(dtype)
    shift = tl.full((tile.groups,), 0, dtype)
    for at in range(0, chunks, width):
        chunk = at + tl.arange(0, width)
        there = real[:, None] & (chunk < chunks)[None, :]
        count = elements_of(chunk, pixels, steps, ranges, dtype, tile)[None, :]
        mean = tl.load(partial[:, None] + chunk[None, :], there, 0)
        shift += over_parts(tl.where(there, count * (mean - anchor[:, None]), 0), tile)
    shift = divide(shift, total)
    squares = tl.full((tile.groups,), 0, dtype)
    for at in range(0, chunks, width):
        chunk = at + tl.arange(0, width)
        there = real[:, None] & (chunk < chunks)[None, :]
        count = elements_of(chunk, pixels, steps, ranges, dtype, tile)[None, :]
        mean = tl.load(partial[:, None] + chunk[None, :], there, 0)
        apart = mean - anchor[:, None] - shift[:, None]
        within = tl.load(partial[:, None] + plane + chunk[None, :], there, 0)
        squares += over_parts(tl.where(there, within + count * apart * apart, 0), tile)
    return anchor, shift, squares


@triton.jit
def elements_of(chunk, pixels, steps, ranges, dtype: tl.constexpr, tile: tl.constexpr):
    """How many elements of a group are in its chunks (width,)."""
    channels = tl.minimum(tile.group_channels - chunk // ranges * tile.channels, tile.channels)
    begin, end = pixels_of(chunk % ranges, steps, pixels, tile)
    return channels.to(dtype) * (end - begin).to(dtype)


@triton.jit
def group_norm_silu_fwd_apply_kernel(
    y,
    x,
    x_stride,
    parameters,
    strides,
    mean,
    rstd,
    partial,
    pixels,
    steps,
    ranges,
    eps: tl.constexpr,
    silu: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
):
    """The result out of the partial statistics; what was read last is read first, as it may still be in the cache."""
    dtype: tl.constexpr = partial.dtype.element_ty
    sample, block, sub, part = chunk_of(tl.num_programs(0) - 1 - tl.program_id(0), ranges, tile)
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    plane = (tl.num_programs(0) // tile.blocks).to(tl.int64) * tile.sample_groups
    anchor, shift, squares = combined(partial, plane, sample, block, pixels, steps, ranges, width, tile)
    scale = reciprocal_deviation(squares, tile.group_channels * pixels.to(dtype), eps)
    group, real = groups_of(block, tile)
    real &= sub + part == 0
    tl.store(mean + sample * tile.sample_groups + group, anchor + shift, real)
    tl.store(rstd + sample * tile.sample_groups + group, scale, real)
    first, row, known = channels_of(block, sub, tile)
    alpha, beta = affine(parameters, strides, sample, first + row, known, dtype)
    anchor, shift, scale = to_rows(anchor, tile), to_rows(shift, tile), to_rows(scale, tile)
    x += sample * x_stride * tile.stride_unit
    y += sample * tile.sample_channels * pixels
    begin, end = pixels_of(part, steps, pixels, tile)
    for pixel in range(begin, end, tile.pixels):
        start, offset, there = place(block, sub, pixel, pixels, tile)
        z = load_sum(
            x + start, offset, there, parameters[2], strides[2], sample, first + row, known, dtype, "evict_first"
        )
        store_value(y + start, offset, there, z - anchor[:, None], shift, scale, alpha, beta, silu)


def group_norm_silu_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and 1 / sqrt(var + eps) of x + add, (N, num_groups) in the op dtype; arguments checked."""
    call = Call(x, [], num_groups, arrays=1)
    y, mean, rstd = call.result(), call.scratch(x.shape[0], num_groups), call.scratch(x.shape[0], num_groups)
    if x.numel() == 0:  # statistics of nothing, as the reference has them
        return y, mean.zero_(), rstd.fill_(1 / math.sqrt(eps) if eps else math.inf)
    parameters, strides = rows_of((weight, bias, add, scale, shift))
    arguments = (y, *call.operands, parameters, strides, mean, rstd)
    if call.plan.one_pass:
        launch(
            group_norm_silu_fwd_kernel,
            call.programs,
            x.device,
            *arguments,
            call.units,
            eps=eps,
            silu=silu,
            **call.options,
        )
        return y, mean, rstd
    partial = call.scratch(2, x.shape[0], num_groups, call.plan.chunks)
    launch(
        group_norm_silu_fwd_partials_kernel,
        call.programs,
        x.device,
        partial,
        *call.operands,
        parameters[2],
        strides[2],
        *call.shares,
        dtype=call.real,
        **call.options,
    )
    launch(
        group_norm_silu_fwd_apply_kernel,
        call.programs,
        x.device,
        *arguments,
        partial,
        *call.shares,
        eps=eps,
        silu=silu,
        width=call.plan.width,
        **call.options,
    )
    return y, mean, rstd

"""group_norm_silu: the tangent of the value.

With z_t the tangent of x + add, it takes two means over each group, m0 of z_t and m1 of z_t xhat; none if z_t is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._group_norm_silu import (
    Call,
    channels_of,
    chunk_of,
    groups_of,
    load_sum,
    normalizer,
    over_group,
    over_parts,
    per_channel,
    pixels_of,
    place,
    rows_of,
    silu_slope,
    to_rows,
)
from ._launch import launch, warps_of


@triton.jit
def affine_tangent(parameters, strides, tangents, tangent_strides, sample, channel, known, dtype: tl.constexpr):
    """The tangents (rows,) of alpha and beta, where v = alpha xhat + beta."""
    weight = per_channel(parameters[0], strides[0], sample, channel, known, 1, dtype)
    bias = per_channel(parameters[1], strides[1], sample, channel, known, 0, dtype)
    gain = 1 + per_channel(parameters[3], strides[3], sample, channel, known, 0, dtype)
    gain_t = per_channel(tangents[3], tangent_strides[3], sample, channel, known, 0, dtype)
    alpha_t = gain * per_channel(tangents[0], tangent_strides[0], sample, channel, known, 0, dtype) + gain_t * weight
    beta_t = gain * per_channel(tangents[1], tangent_strides[1], sample, channel, known, 0, dtype) + gain_t * bias
    return alpha_t, beta_t + per_channel(tangents[4], tangent_strides[4], sample, channel, known, 0, dtype)


@triton.jit
def load_tangent(x_t, start, offset, there, add_t, add_t_stride, sample, channel, known, like):
    """z_t of a tile, 0 where there is nothing; one of x_t and add_t is there."""
    if x_t is None:
        tangent = per_channel(add_t, add_t_stride, sample, channel, known, 0, like.dtype)
        z_t = tl.where(there, tl.broadcast_to(tangent[:, None], like.shape), 0)
    else:
        z_t = load_sum(x_t + start, offset, there, add_t, add_t_stride, sample, channel, known, like.dtype, "")
    return z_t


@triton.jit
def store_tangent(y_t, offset, there, deviation, v_t, slope, beta, silu: tl.constexpr):
    """y_t out of v_t, the tangent of v = slope (x - center) + beta."""
    if silu:
        v_t *= silu_slope(slope[:, None] * deviation + beta[:, None])
    tl.store(y_t + offset, v_t.to(y_t.dtype.element_ty), there)


@triton.jit
def group_norm_silu_jvp_kernel(
    y_t,
    x,
    x_stride,
    x_t,
    x_t_stride,
    parameters,
    strides,
    tangents,
    tangent_strides,
    mean,
    rstd,
    pixels,
    silu: tl.constexpr,
    tile: tl.constexpr,
):
    """One pass; z_t is not 0."""
    program = tl.program_id(0)
    sample, block = (program // tile.blocks).to(tl.int64), program % tile.blocks
    dtype: tl.constexpr = mean.dtype.element_ty
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    start, offset, there = place(block, 0, 0, pixels, tile)
    first, row, known = channels_of(block, 0, tile)
    channel = first + row
    center, scale, _, slope, beta = normalizer(mean, rstd, parameters, strides, sample, block, channel, known, tile)
    x += sample * x_stride * tile.stride_unit + start
    if x_t is not None:
        x_t += sample * x_t_stride * tile.stride_unit
    deviation = tl.load(x + offset, there, 0).to(dtype) - center[:, None]
    z_t = load_tangent(x_t, start, offset, there, tangents[2], tangent_strides[2], sample, channel, known, deviation)
    count = tile.group_channels * pixels.to(dtype)
    mean_t = to_rows(over_group(z_t, tile) / count, tile)
    mean_tx = to_rows(over_group(z_t * deviation, tile) / count, tile) * scale
    alpha_t, beta_t = affine_tangent(parameters, strides, tangents, tangent_strides, sample, channel, known, dtype)
    turn = scale * (alpha_t - slope * mean_tx)
    y_t += sample * tile.sample_channels * pixels + start
    v_t = slope[:, None] * (z_t - mean_t[:, None]) + turn[:, None] * deviation + beta_t[:, None]
    store_tangent(y_t, offset, there, deviation, v_t, slope, beta, silu)


@triton.jit
def group_norm_silu_jvp_partials_kernel(
    partial,
    x,
    x_stride,
    x_t,
    x_t_stride,
    parameters,
    strides,
    add_t,
    add_t_stride,
    mean,
    rstd,
    pixels,
    steps,
    ranges,
    tile: tl.constexpr,
):
    """The sums of z_t and of z_t (x - center) over a chunk; partial: (2, N, groups, chunks)."""
    sample, block, sub, part = chunk_of(tl.program_id(0), ranges, tile)
    dtype: tl.constexpr = mean.dtype.element_ty
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    first, row, known = channels_of(block, sub, tile)
    group, real = groups_of(block, tile)
    group += sample * tile.sample_groups
    center, _, _, _, _ = normalizer(mean, rstd, parameters, strides, sample, block, first + row, known, tile)
    x += sample * x_stride * tile.stride_unit
    if x_t is not None:
        x_t += sample * x_t_stride * tile.stride_unit
    sum_t = tl.full((tile.groups,), 0, dtype)
    sum_tx = tl.full((tile.groups,), 0, dtype)
    begin, end = pixels_of(part, steps, pixels, tile)
    for pixel in range(begin, end, tile.pixels):
        start, offset, there = place(block, sub, pixel, pixels, tile)
        deviation = tl.load(x + start + offset, there, 0).to(dtype) - center[:, None]
        z_t = load_tangent(x_t, start, offset, there, add_t, add_t_stride, sample, first + row, known, deviation)
        sum_t += over_group(z_t, tile)
        sum_tx += over_group(z_t * deviation, tile)
    chunks = tile.subs * ranges
    plane = (tl.num_programs(0) // (tile.blocks * chunks)).to(tl.int64) * (tile.sample_groups * chunks)
    partial += group * chunks + sub * ranges + part
    tl.store(partial, sum_t, real)
    tl.store(partial + plane, sum_tx, real)


@triton.jit
def over_chunks(partial, group, real, chunks, width: tl.constexpr, tile: tl.constexpr):
    """The partial sums of each group (tile.groups,), always in the same order."""
    total = tl.full((tile.groups,), 0, partial.dtype.element_ty)
    for at in range(0, chunks, width):
        chunk = at + tl.arange(0, width)
        there = real[:, None] & (chunk < chunks)[None, :]
        total += over_parts(tl.load(partial + group[:, None] * chunks + chunk[None, :], there, 0), tile)
    return total


@triton.jit
def group_norm_silu_jvp_finish_kernel(
    numbers,
    partial,
    parameters,
    strides,
    tangents,
    tangent_strides,
    mean,
    rstd,
    pixels,
    ranges,
    width: tl.constexpr,
    tile: tl.constexpr,
):
    """What the tangent takes for each channel, out of the partial sums, which are None where z_t is 0.

    numbers: (5, N, channels), of y_t = silu'(slope (x - center) + beta) (slope x_t + turn (x - center) + rest).
    """
    program = tl.program_id(0)
    sample, block = (program // tile.blocks).to(tl.int64), program % tile.blocks
    batch = (tl.num_programs(0) // tile.blocks).to(tl.int64)
    dtype: tl.constexpr = mean.dtype.element_ty
    if partial is not None:
        group, real = groups_of(block, tile)
        group += sample * tile.sample_groups
        count = tile.group_channels * (pixels * tl.full((), tile.pixel_unit, tl.int32)).to(dtype)
        chunks = tile.subs * ranges
        sums_x = partial + batch * tile.sample_groups * chunks
        mean_t = to_rows(over_chunks(partial, group, real, chunks, width, tile) / count, tile)
        mean_tx = to_rows(over_chunks(sums_x, group, real, chunks, width, tile) / count, tile)
    for sub in range(tile.subs):
        first, row, known = channels_of(block, sub, tile)
        channel = first + row
        center, scale, _, slope, beta = normalizer(mean, rstd, parameters, strides, sample, block, channel, known, tile)
        turn, rest = affine_tangent(parameters, strides, tangents, tangent_strides, sample, channel, known, dtype)
        if partial is not None:
            turn -= slope * (mean_tx * scale)
            rest += slope * (per_channel(tangents[2], tangent_strides[2], sample, channel, known, 0, dtype) - mean_t)
        to = numbers + sample * tile.sample_channels + channel
        plane = batch * tile.sample_channels
        tl.store(to, tl.broadcast_to(center, (tile.rows,)), known)
        tl.store(to + plane, slope, known)
        tl.store(to + 2 * plane, beta, known)
        tl.store(to + 3 * plane, scale * turn, known)
        tl.store(to + 4 * plane, rest, known)


@triton.jit
def group_norm_silu_jvp_apply_kernel(
    y_t,
    x,
    x_stride,
    x_t,
    x_t_stride,
    numbers,
    pixels,
    steps,
    ranges,
    silu: tl.constexpr,
    tile: tl.constexpr,
):
    """The tangent; what was read last is read first, as it may still be in the cache."""
    sample, block, sub, part = chunk_of(tl.num_programs(0) - 1 - tl.program_id(0), ranges, tile)
    batch = (tl.num_programs(0) // (tile.blocks * tile.subs * ranges)).to(tl.int64)
    dtype: tl.constexpr = numbers.dtype.element_ty
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    first, row, known = channels_of(block, sub, tile)
    numbers += sample * tile.sample_channels + first + row
    plane = batch * tile.sample_channels
    center = tl.load(numbers, known, 0)
    slope = tl.load(numbers + plane, known, 0)
    beta = tl.load(numbers + 2 * plane, known, 0)
    turn = tl.load(numbers + 3 * plane, known, 0)
    x += sample * x_stride * tile.stride_unit
    y_t += sample * tile.sample_channels * pixels
    if x_t is not None:
        x_t += sample * x_t_stride * tile.stride_unit
    begin, end = pixels_of(part, steps, pixels, tile)
    for pixel in range(begin, end, tile.pixels):
        start, offset, there = place(block, sub, pixel, pixels, tile)
        deviation = tl.load(x + start + offset, there, 0, eviction_policy="evict_first").to(dtype) - center[:, None]
        rest = tl.load(numbers + 4 * plane, known, 0)  # here for want of registers
        v_t = turn[:, None] * deviation + rest[:, None]
        if x_t is not None:
            v_t += slope[:, None] * tl.load(x_t + start + offset, there, 0, eviction_policy="evict_first").to(dtype)
        store_tangent(y_t + start, offset, there, deviation, v_t, slope, beta, silu)


def group_norm_silu_jvp(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    x_t: Tensor | None,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
    add_t: Tensor | None,
    scale_t: Tensor | None,
    shift_t: Tensor | None,
    num_groups: int,
    silu: bool,
) -> Tensor:
    """The tangent of y along the given tangents; what is None is 0 and is not read. Arguments checked."""
    call = Call(x, [] if x_t is None else [x_t], num_groups, arrays=1 if x_t is None else 2)
    y_t = call.result()
    if x.numel() == 0:
        return y_t
    parameters, strides = rows_of((weight, bias, add, scale, shift))
    tangents, tangent_strides = rows_of((weight_t, bias_t, add_t, scale_t, shift_t))
    mean, rstd = mean.contiguous(), rstd.contiguous()
    operands = call.operands if x_t is not None else (*call.operands, None, 0)
    moves = x_t is not None or add_t is not None  # z_t is not 0
    arguments = (parameters, strides, tangents, tangent_strides, mean, rstd)
    if moves and call.plan.one_pass:
        launch(
            group_norm_silu_jvp_kernel,
            call.programs,
            x.device,
            y_t,
            *operands,
            *arguments,
            call.units,
            silu=silu,
            **call.options,
        )
        return y_t
    partial = call.scratch(2, x.shape[0], num_groups, call.plan.chunks) if moves else None
    if moves:
        launch(
            group_norm_silu_jvp_partials_kernel,
            call.programs,
            x.device,
            partial,
            *operands,
            parameters,
            strides,
            tangents[2],
            tangent_strides[2],
            mean,
            rstd,
            *call.shares,
            **call.options,
        )
    numbers = call.scratch(5, *x.shape[:2])
    launch(
        group_norm_silu_jvp_finish_kernel,
        x.shape[0] * call.tile.blocks,
        x.device,
        numbers,
        partial,
        *arguments,
        call.units,
        call.plan.ranges,
        width=call.plan.width,
        tile=call.tile,
        num_warps=warps_of(256),
    )
    launch(
        group_norm_silu_jvp_apply_kernel,
        call.programs,
        x.device,
        y_t,
        *operands,
        numbers,
        *call.shares,
        silu=silu,
        **call.options,
    )
    return y_t

"""group_norm_silu: the gradients.

With g = dL/dv and v = alpha xhat + beta, everything comes from three sums over the pixels of each channel of each
sample, of g, of g xhat and of xhat, and from two means over each group, m0 of alpha g and m1 of alpha g xhat.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._group_norm_silu import (
    Call,
    affine,
    channels_of,
    chunk_of,
    groups_of,
    normalizer,
    over_channels,
    per_channel,
    pixels_of,
    place,
    rows_of,
    silu_slope,
    to_rows,
)
from ._launch import launch, warps_of

BLOCK = (16, 32)  # samples and channels that a program of the parameters' gradients takes at once


@triton.jit
def load_gradient(x, grad_y, offset, there, center, slope, beta, silu: tl.constexpr, eviction: tl.constexpr):
    """x - center and g = dL/dv of a tile; g is 0 where there is nothing."""
    deviation = tl.load(x + offset, there, 0, eviction_policy=eviction).to(slope.dtype) - center[:, None]
    g = tl.load(grad_y + offset, there, 0, eviction_policy=eviction).to(slope.dtype)
    if silu:
        g *= silu_slope(slope[:, None] * deviation + beta[:, None])
    return deviation, g


@triton.jit
def store_gradient(grad_x, offset, there, deviation, g, slope, scale, mean_g, mean_gx):
    """grad_x = scale (alpha g - m0 - xhat m1); scale, m0 and m1: (rows,) or (1,)."""
    mean_g *= scale
    mean_gx *= scale * scale
    gradient = slope[:, None] * g - mean_g[:, None] - deviation * mean_gx[:, None]
    tl.store(grad_x + offset, gradient.to(grad_x.dtype.element_ty), there)


@triton.jit
def group_norm_silu_bwd_kernel(
    grad_x,
    x,
    x_stride,
    grad_y,
    grad_y_stride,
    parameters,
    strides,
    mean,
    rstd,
    sums,
    means,
    pixels,
    silu: tl.constexpr,
    tile: tl.constexpr,
):
    """One pass. sums: (3, N, channels), means: (2, N, groups), for the gradients of the parameters, or None."""
    program = tl.program_id(0)
    sample, block = (program // tile.blocks).to(tl.int64), program % tile.blocks
    dtype: tl.constexpr = mean.dtype.element_ty
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    start, offset, there = place(block, 0, 0, pixels, tile)
    first, row, known = channels_of(block, 0, tile)
    channel = first + row
    center, scale, alpha, slope, beta = normalizer(mean, rstd, parameters, strides, sample, block, channel, known, tile)
    x += sample * x_stride * tile.stride_unit + start
    grad_y += sample * grad_y_stride * tile.stride_unit + start
    deviation, g = load_gradient(x, grad_y, offset, there, center, slope, beta, silu, "")
    sum_g = tl.sum(g, 1)
    sum_gx = scale * tl.sum(g * deviation, 1)
    count = tile.group_channels * pixels.to(dtype)
    mean_g = over_channels(alpha * sum_g, tile) / count
    mean_gx = over_channels(alpha * sum_gx, tile) / count
    if sums is not None:
        batch = (tl.num_programs(0) // tile.blocks).to(tl.int64)
        sums += sample * tile.sample_channels + channel
        tl.store(sums, sum_g, known)
        tl.store(sums + batch * tile.sample_channels, sum_gx, known)
        if parameters[2] is not None:
            tl.store(sums + 2 * batch * tile.sample_channels, scale * tl.sum(tl.where(there, deviation, 0), 1), known)
            group, real = groups_of(block, tile)
            means += sample * tile.sample_groups + group
            tl.store(means, mean_g, real)
            tl.store(means + batch * tile.sample_groups, mean_gx, real)
    grad_x += sample * tile.sample_channels * pixels + start
    store_gradient(grad_x, offset, there, deviation, g, slope, scale, to_rows(mean_g, tile), to_rows(mean_gx, tile))


@triton.jit
def no_sums(dtype: tl.constexpr, tile: tl.constexpr):
    """0 for each channel of a tile; for each element where they are in as many registers, and cheaper to add to."""
    return tl.full((tile.rows, tile.pixels if tile.last else 1), 0, dtype)


@triton.jit
def in_sums(values, tile: tl.constexpr):
    """(rows, tile.pixels) as it is added to such sums."""
    if not tile.last:
        values = tl.sum(values, 1, keep_dims=True)
    return values


@triton.jit
def group_norm_silu_bwd_partials_kernel(
    partial,
    x,
    x_stride,
    grad_y,
    grad_y_stride,
    parameters,
    strides,
    mean,
    rstd,
    pixels,
    steps,
    ranges,
    silu: tl.constexpr,
    tile: tl.constexpr,
):
    """The sums over the pixels of a chunk, of g, of g (x - center) and of x - center.

    partial: (3, N, channels, ranges), channels last if x has them last.
    """
    sample, block, sub, part = chunk_of(tl.program_id(0), ranges, tile)
    dtype: tl.constexpr = mean.dtype.element_ty
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    first, row, known = channels_of(block, sub, tile)
    channel = first + row
    center, _, _, slope, beta = normalizer(mean, rstd, parameters, strides, sample, block, channel, known, tile)
    x += sample * x_stride * tile.stride_unit
    grad_y += sample * grad_y_stride * tile.stride_unit
    sum_g = no_sums(dtype, tile)
    sum_gx = no_sums(dtype, tile)
    sum_x = no_sums(dtype, tile)
    begin, end = pixels_of(part, steps, pixels, tile)
    for pixel in range(begin, end, tile.pixels):
        start, offset, there = place(block, sub, pixel, pixels, tile)
        deviation, g = load_gradient(x + start, grad_y + start, offset, there, center, slope, beta, silu, "")
        sum_g += in_sums(g, tile)
        sum_gx += in_sums(g * deviation, tile)
        if parameters[2] is not None:
            sum_x += in_sums(tl.where(there, deviation, 0), tile)
    size = tile.sample_channels * ranges
    plane = (tl.num_programs(0) // (tile.blocks * tile.subs * ranges)).to(tl.int64) * size
    partial += sample * size + part_of(channel, part, ranges, tile)
    tl.store(partial, tl.sum(sum_g, 1), known)
    tl.store(partial + plane, tl.sum(sum_gx, 1), known)
    if parameters[2] is not None:
        tl.store(partial + 2 * plane, tl.sum(sum_x, 1), known)


@triton.jit
def part_of(channel, part, ranges, tile: tl.constexpr):
    """Where the sums of a range of pixels of a channel are in those of a sample."""
    if tile.last:
        at = part * tile.sample_channels + channel
    else:
        at = channel * ranges + part
    return at


@triton.jit
def group_norm_silu_bwd_finish_kernel(
    sums, means, partial, parameters, strides, rstd, pixels, ranges, width: tl.constexpr, tile: tl.constexpr
):
    """The sums and means of the groups of a program out of the partial ones, always in the same order."""
    program = tl.program_id(0)
    sample, block = (program // tile.blocks).to(tl.int64), program % tile.blocks
    batch = (tl.num_programs(0) // tile.blocks).to(tl.int64)
    dtype: tl.constexpr = partial.dtype.element_ty
    size = tile.sample_channels * ranges
    partial += sample * size
    sums += sample * tile.sample_channels
    mean_g = tl.full((tile.groups,), 0, dtype)
    mean_gx = tl.full((tile.groups,), 0, dtype)
    group, real = groups_of(block, tile)
    group += sample * tile.sample_groups
    scale = to_rows(tl.load(rstd + group, real, 0), tile)
    for sub in range(tile.subs):
        first, row, known = channels_of(block, sub, tile)
        channel = first + row
        alpha, _ = affine(parameters, strides, sample, channel, known, dtype)
        sum_g = over_ranges(partial, channel, known, ranges, width, tile)
        sum_gx = scale * over_ranges(partial + batch * size, channel, known, ranges, width, tile)
        tl.store(sums + channel, sum_g, known)
        tl.store(sums + batch * tile.sample_channels + channel, sum_gx, known)
        if parameters[2] is not None:
            sum_x = scale * over_ranges(partial + 2 * batch * size, channel, known, ranges, width, tile)
            tl.store(sums + 2 * batch * tile.sample_channels + channel, sum_x, known)
        mean_g += over_channels(alpha * sum_g, tile)
        mean_gx += over_channels(alpha * sum_gx, tile)
    count = tile.group_channels * (pixels * tl.full((), tile.pixel_unit, tl.int32)).to(dtype)
    means += group
    tl.store(means, mean_g / count, real)
    tl.store(means + batch * tile.sample_groups, mean_gx / count, real)


@triton.jit
def over_ranges(partial, channel, known, ranges, width: tl.constexpr, tile: tl.constexpr):
    """The partial sums of the channels (rows,) summed over the ranges of pixels."""
    total = tl.full((tile.rows, width), 0, partial.dtype.element_ty)
    for at in range(0, ranges, width):
        part = at + tl.arange(0, width)
        there = known[:, None] & (part < ranges)[None, :]
        total += tl.load(partial + part_of(channel[:, None], part[None, :], ranges, tile), there, 0)
    return tl.sum(total, 1)


@triton.jit
def group_norm_silu_bwd_apply_kernel(
    grad_x,
    x,
    x_stride,
    grad_y,
    grad_y_stride,
    parameters,
    strides,
    mean,
    rstd,
    means,
    pixels,
    steps,
    ranges,
    silu: tl.constexpr,
    tile: tl.constexpr,
):
    """The gradient of x; what was read last is read first, as it may still be in the cache."""
    sample, block, sub, part = chunk_of(tl.num_programs(0) - 1 - tl.program_id(0), ranges, tile)
    pixels *= tl.full((), tile.pixel_unit, tl.int32)
    first, row, known = channels_of(block, sub, tile)
    channel = first + row
    group, real = groups_of(block, tile)
    group += sample * tile.sample_groups
    statistics = (tl.num_programs(0) // (tile.blocks * tile.subs * ranges)).to(tl.int64) * tile.sample_groups
    center, scale, _, slope, beta = normalizer(mean, rstd, parameters, strides, sample, block, channel, known, tile)
    mean_g = to_rows(tl.load(means + group, real, 0), tile)
    mean_gx = to_rows(tl.load(means + statistics + group, real, 0), tile)
    x += sample * x_stride * tile.stride_unit
    grad_y += sample * grad_y_stride * tile.stride_unit
    grad_x += sample * tile.sample_channels * pixels
    begin, end = pixels_of(part, steps, pixels, tile)
    for pixel in range(begin, end, tile.pixels):
        start, offset, there = place(block, sub, pixel, pixels, tile)
        deviation, g = load_gradient(x + start, grad_y + start, offset, there, center, slope, beta, silu, "evict_first")
        store_gradient(grad_x + start, offset, there, deviation, g, slope, scale, mean_g, mean_gx)


@triton.jit
def group_norm_silu_bwd_parameters_kernel(
    gradients,
    parameters,
    strides,
    sums,
    means,
    rstd,
    batch,
    pixels,
    channels,
    group_channels,
    samples: tl.constexpr,
    block: tl.constexpr,
):
    """The gradients of the parameters that are there, of `block` channels; summed over the samples where shared."""
    channel = tl.program_id(0) * block + tl.arange(0, block)
    known = channel < channels
    dtype: tl.constexpr = sums.dtype.element_ty
    plane = tl.cast(batch, tl.int64) * channels
    shared_weight = tl.full((block,), 0, dtype)
    shared_bias = tl.full((block,), 0, dtype)
    for begin in range(0, batch, samples):
        sample = begin + tl.arange(0, samples)
        there = (sample < batch)[:, None] & known[None, :]
        sample = sample.to(tl.int64)[:, None]
        at = sample * channels + channel[None, :]
        sum_g = tl.load(sums + at, there, 0)
        sum_gx = tl.load(sums + plane + at, there, 0)
        weight = per_channel(parameters[0], strides[0], sample, channel[None, :], there, 1, dtype)
        bias = per_channel(parameters[1], strides[1], sample, channel[None, :], there, 0, dtype)
        gain = 1 + per_channel(parameters[3], strides[3], sample, channel[None, :], there, 0, dtype)
        if gradients[0] is not None:
            shared_weight += tl.sum(gain * sum_gx, 0)
            tl.store(gradients[0] + at, (gain * sum_gx).to(gradients[0].dtype.element_ty), there & (strides[0] != 0))
        if gradients[1] is not None:
            shared_bias += tl.sum(gain * sum_g, 0)
            tl.store(gradients[1] + at, (gain * sum_g).to(gradients[1].dtype.element_ty), there & (strides[1] != 0))
        if gradients[2] is not None:
            group = sample * (channels // group_channels) + channel[None, :] // group_channels
            mean_g = tl.load(means + group, there, 0)
            mean_gx = tl.load(means + plane // group_channels + group, there, 0)
            sum_x = tl.load(sums + 2 * plane + at, there, 0)
            grad_add = gain * weight * sum_g - tl.cast(pixels, dtype) * mean_g - mean_gx * sum_x
            grad_add *= tl.load(rstd + group, there, 0)
            tl.store(gradients[2] + at, grad_add.to(gradients[2].dtype.element_ty), there)
        if gradients[3] is not None:
            grad_scale = weight * sum_gx + bias * sum_g
            tl.store(gradients[3] + at, grad_scale.to(gradients[3].dtype.element_ty), there)
        if gradients[4] is not None:
            tl.store(gradients[4] + at, sum_g.to(gradients[4].dtype.element_ty), there)
    if gradients[0] is not None:
        tl.store(gradients[0] + channel, shared_weight.to(gradients[0].dtype.element_ty), known & (strides[0] == 0))
    if gradients[1] is not None:
        tl.store(gradients[1] + channel, shared_bias.to(gradients[1].dtype.element_ty), known & (strides[1] == 0))


def group_norm_silu_bwd(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    silu: bool,
) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias, add, scale and shift, empty of shape (0,) where absent; arguments checked."""
    call = Call(x, [grad_y], num_groups, arrays=2)
    given = (weight, bias, add, scale, shift)
    grad_x = call.result()
    if x.numel() == 0:
        return grad_x, *(mean.new_empty(0) if p is None else p.new_zeros(p.shape) for p in given)
    batch, channels = x.shape[:2]
    gradients = tuple(None if p is None else p.new_empty(p.shape) for p in given)
    parameters, strides = rows_of(given)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    arguments = (*call.operands, parameters, strides, mean, rstd)
    wanted = any(p is not None for p in given)
    sums = call.scratch(3, batch, channels) if wanted or not call.plan.one_pass else None
    means = call.scratch(2, batch, num_groups) if sums is not None else None
    if call.plan.one_pass:
        launch(
            group_norm_silu_bwd_kernel,
            call.programs,
            x.device,
            grad_x,
            *arguments,
            sums,
            means,
            call.units,
            silu=silu,
            **call.options,
        )
    else:
        partial = call.scratch(3, batch, channels, call.plan.ranges)
        launch(
            group_norm_silu_bwd_partials_kernel,
            call.programs,
            x.device,
            partial,
            *arguments,
            *call.shares,
            silu=silu,
            **call.unlimited,  # its sums would spill; 16 bytes in flight a thread hide the latency
        )
        launch(
            group_norm_silu_bwd_finish_kernel,
            batch * call.tile.blocks,
            x.device,
            sums,
            means,
            partial,
            parameters,
            strides,
            rstd,
            call.units,
            call.plan.ranges,
            width=min(triton.next_power_of_2(call.plan.ranges), max(4096 // call.tile.rows, 1)),
            tile=call.tile,
            num_warps=warps_of(128),
        )
        launch(
            group_norm_silu_bwd_apply_kernel,
            call.programs,
            x.device,
            grad_x,
            *arguments,
            means,
            *call.shares,
            silu=silu,
            **call.options,
        )
    if wanted:
        launch(
            group_norm_silu_bwd_parameters_kernel,
            triton.cdiv(channels, BLOCK[1]),
            x.device,
            gradients,
            parameters,
            strides,
            sums,
            means,
            rstd,
            batch,
            call.pixels,
            channels,
            channels // num_groups,
            samples=BLOCK[0],
            block=BLOCK[1],
            num_warps=warps_of(256),
        )
    return grad_x, *(mean.new_empty(0) if g is None else g for g in gradients)

"""Probes of Hutchinson's estimator in registers: multiplied and summed per sample, or written down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._philox import normal4, signs128
from ._states import Layout, layout_of
from ._sums import extent, row_sums

_BLOCK = 2048  # elements to a program: what a partial sum is taken over


@triton.jit
def _probe(
    rng,
    samples,
    sample,
    k,
    number,
    pixels,
    channels: tl.constexpr,
    signs: tl.constexpr,
    wide: tl.constexpr,
    dtype: tl.constexpr,
    block: tl.constexpr,
):
    """Tile `number` of probe k of a sample: the noise, where its elements lie in memory, and which of them there are.

    All three are (Philox blocks, elements of a block).
    """
    run: tl.constexpr = 128 if signs else 4
    index, lane = tl.arange(0, block // run), tl.arange(0, run)
    if wide:
        index, lane, number, pixels = index.to(tl.int64), lane.to(tl.int64), number.to(tl.int64), pixels.to(tl.int64)
    index += number * (block // run)
    logical = index[:, None] * run + lane[None, :]
    offset = logical if channels == 1 else (logical % pixels) * channels + logical // pixels
    seed, draw, which = tl.load(rng), tl.load(rng + 1) + k, tl.load(samples + sample)
    if signs:
        eps = tl.reshape(signs128(seed, draw, which, index), (block // run, run)).to(dtype)
    else:
        eps = normal4(seed, draw, which, index, dtype)
    return eps, offset, logical < pixels * channels


@triton.jit
def hutchinson_kernel(
    partial,
    jvp,
    probe_stride,
    sample_stride,
    rng,
    samples,
    batch,
    pixels,
    tiles,
    channels: tl.constexpr,
    signs: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """partial[k, b, tile] = eps_k . (J eps_k) over a tile of sample b, float64; one program each."""
    program = tl.program_id(0)
    row, number = program // tiles, program % tiles
    k, sample = (row // batch).to(tl.int64), (row % batch).to(tl.int64)
    dtype: tl.constexpr = tl.float64 if jvp.dtype.element_ty == tl.float64 else tl.float32
    eps, offset, there = _probe(rng, samples, sample, k, number, pixels, channels, signs, wide, dtype, block)
    value = tl.load(jvp + k * probe_stride + sample * sample_stride + offset, there, 0.0).to(dtype)
    product = tl.where(there, eps * value, 0.0).to(tl.float64)
    tl.store(partial + program, tl.sum(tl.reshape(product, (block,)), 0))


@triton.jit
def hutchinson_mean_kernel(
    estimate, products, partial, batch, probes, tiles, lines: tl.constexpr, columns: tl.constexpr
):
    """The products of all probes of `lines` samples, and their mean; one program each."""
    first = tl.program_id(0) * lines
    row = first + tl.arange(0, lines)
    total = tl.zeros((lines,), tl.float64)
    for k in range(probes):
        start = tl.cast(k, tl.int64) * batch
        product = row_sums(partial + start * tiles, first, batch, tiles, lines, columns)
        tl.store(products + start + row, product.to(products.dtype.element_ty), row < batch)
        total += product
    tl.store(estimate + row, (total / probes).to(estimate.dtype.element_ty), row < batch)


@triton.jit
def hutchinson_probe_kernel(
    out,
    weight,
    rng,
    samples,
    batch,
    pixels,
    tiles,
    channels: tl.constexpr,
    signs: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """out[k, b] = weight[k, b] eps_k; one program per tile of a sample."""
    program = tl.program_id(0)
    row, number = (program // tiles).to(tl.int64), program % tiles
    k, sample = row // batch, row % batch
    dtype: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    eps, offset, there = _probe(rng, samples, sample, k, number, pixels, channels, signs, wide, dtype, block)
    if weight is not None:
        eps *= tl.load(weight + row).to(dtype)
    tl.store(out + row * pixels * channels + offset, eps.to(out.dtype.element_ty), there)


def hutchinson(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """`fastscore.ops.hutchinson`, its arguments checked."""
    probes, batch = jvp.shape[:2]
    dtype = torch.float64 if jvp.dtype == torch.float64 else torch.float32
    estimate, products = jvp.new_empty((batch,), dtype=dtype), jvp.new_empty((probes, batch), dtype=dtype)
    if jvp.numel() == 0:
        return estimate.zero_(), products.zero_()
    layout = layout_of(jvp[0])
    if layout is None:
        jvp = jvp.contiguous()
        layout = Layout(jvp[0, 0].numel(), 1)
    tiles = triton.cdiv(layout.size, _BLOCK)
    partial = jvp.new_empty((probes, batch, tiles), dtype=torch.float64)
    launch(
        hutchinson_kernel,
        probes * batch * tiles,
        jvp.device,
        partial,
        jvp,
        *jvp.stride()[:2],
        rng.contiguous(),
        samples.contiguous(),
        batch,
        layout.pixels,
        tiles,
        channels=layout.channels,
        signs=kind == "rademacher",
        wide=_wide(layout),
        block=_BLOCK,
        num_warps=4,
    )
    lines, columns = extent(tiles)
    launch(
        *(hutchinson_mean_kernel, triton.cdiv(batch, lines), jvp.device),
        *(estimate, products, partial, batch, probes, tiles),
        lines=lines,
        columns=columns,
        num_warps=4,
    )
    return estimate, products


def hutchinson_probe(
    rng: Tensor,
    samples: Tensor,
    weight: Tensor | None,
    probes: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    kind: str,
    channels_last: bool,
) -> Tensor:
    """`fastscore.ops.hutchinson_probe`, its arguments checked; `weight` (K, B) multiplies the probes."""
    batch, *rest = shape
    if channels_last:
        out = rng.new_empty((probes, batch, *rest[1:], rest[0]), dtype=dtype).movedim(-1, 2)
    else:
        out = rng.new_empty((probes, batch, *rest), dtype=dtype)
    if out.numel() == 0:
        return out
    channels = rest[0] if channels_last else 1
    layout = Layout(out[0, 0].numel() // channels, channels)
    tiles = triton.cdiv(layout.size, _BLOCK)
    launch(
        hutchinson_probe_kernel,
        probes * batch * tiles,
        out.device,
        out,
        None if weight is None else weight.contiguous(),
        rng.contiguous(),
        samples.contiguous(),
        batch,
        layout.pixels,
        tiles,
        channels=layout.channels,
        signs=kind == "rademacher",
        wide=_wide(layout),
        block=_BLOCK,
        num_warps=4,
    )
    return out


def _wide(layout: Layout) -> bool:
    return layout.size >= 2**31 - _BLOCK

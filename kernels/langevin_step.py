"""One step of the Langevin corrector: two norms of every sample, a row of `linear_step` from them, and that step.

x + step (p x + q h) + sqrt(2 step) z is linear once the step is known, with coefficients (1 + step p), step q and
sqrt(2 step). So x and h are read twice and x is written once; drawn noise is drawn twice and never stored, and of its
norm only the radii of Box and Muller are needed.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._philox import squared_radii
from ._states import Layout, drawn, layout_of, like, operand, rows_of, tile, tile_options
from ._sums import extent, row_sums
from .linear_step import linear_step, linear_step_


@triton.jit
def langevin_norms_kernel(
    sums,
    x,
    x_stride,
    h,
    h_stride,
    noise,
    noise_stride,
    coefficients,
    coefficient_stride,
    rng,
    samples,
    size,
    tiles,
    count,
    whole: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """sums[0] = |z|^2 and sums[1] = |g|^2 of every tile, g = p x + q h; one program per tile, of which there are count.

    The elements are taken as they lie in memory, drawn noise in its own order: a norm does not ask which meets which.

    whole: a sample has no broken Philox block.
    """
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    blocks, offset, there = tile(program % tiles, size, 1, wide, block)
    row = coefficients + sample * coefficient_stride
    dtype: tl.constexpr = coefficients.dtype.element_ty
    g = tl.load(row) * tl.load(x + sample * x_stride + offset, there, 0.0).to(dtype)
    g += tl.load(row + 1) * tl.load(h + sample * h_stride + offset, there, 0.0).to(dtype)
    if noise is not None:
        z = tl.load(noise + sample * noise_stride + offset, there, 0.0).to(dtype)
        square = z * z
    elif whole:
        square = squared_radii(tl.load(rng), tl.load(rng + 1), tl.load(samples + sample), blocks, dtype)
        square = tl.where(blocks < size // 4, square, 0.0)
    else:
        z = drawn(rng, samples, sample, blocks, (block,), dtype)
        square = tl.where(there, z * z, 0.0)
    tl.store(sums + program, tl.sum(square))
    tl.store(sums + count + program, tl.sum(g * g))


@triton.jit
def langevin_rows_kernel(
    rows,
    sums,
    tiles,
    batch,
    coefficients,
    coefficient_stride,
    count,
    shared: tl.constexpr,
    lines: tl.constexpr,
    columns: tl.constexpr,
):
    """rows = [1 + step p, step q, sqrt(2 step)] of the first `count` samples, step = tau (|z| / |g|)^2.

    shared: |z| and |g| are those of the whole batch, and one program does it all; else a program does `lines` samples.
    """
    second = sums + tl.cast(batch, tl.int64) * tiles
    if shared:
        of_z, of_g = tl.zeros((lines,), tl.float64), tl.zeros((lines,), tl.float64)
        for first in range(0, batch, lines):
            of_z += tl.sqrt(row_sums(sums, first, batch, tiles, lines, columns))
            of_g += tl.sqrt(row_sums(second, first, batch, tiles, lines, columns))
        z, g = tl.sum(of_z), tl.sum(of_g)
        for first in range(0, count, lines):
            _write(rows, coefficients, coefficient_stride, first, count, z, g, lines)
    else:
        first = tl.program_id(0) * lines
        z = tl.sqrt(row_sums(sums, first, batch, tiles, lines, columns))
        g = tl.sqrt(row_sums(second, first, batch, tiles, lines, columns))
        _write(rows, coefficients, coefficient_stride, first, count, z, g, lines)


@triton.jit
def _write(rows, coefficients, coefficient_stride, first, count, z, g, lines: tl.constexpr):
    """The rows of the samples first ... first + lines - 1, from norms in float64 (of each, or of all)."""
    still = g == 0  # no direction: the step is zero
    ratio = tl.where(still, 0.0, z / tl.where(still, 1.0, g))
    sample = (first + tl.arange(0, lines)).to(tl.int64)
    there = sample < count
    row = coefficients + sample * coefficient_stride
    p = tl.load(row, there, 0.0).to(tl.float64)
    q = tl.load(row + 1, there, 0.0).to(tl.float64)
    tau = tl.load(row + 2, there, 0.0).to(tl.float64)
    step = tau * ratio * ratio
    out = rows + 3 * sample
    dtype: tl.constexpr = rows.dtype.element_ty
    tl.store(out, (1 + step * p).to(dtype), there)
    tl.store(out + 1, (step * q).to(dtype), there)
    tl.store(out + 2, (tl.sqrt(2 * tau) * ratio).to(dtype), there)


def langevin_step(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    per_sample: bool,
) -> Tensor:
    """`fastscore.ops.langevin_step`, its arguments checked."""
    if x.numel() == 0:
        return like(x)
    return linear_step(x, [h], _rows(x, h, coefficients, noise, rng, samples, per_sample), noise, rng, samples)


def langevin_step_(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    per_sample: bool,
) -> None:
    """`fastscore.ops.langevin_step_`, its arguments checked."""
    if x.numel() > 0:
        linear_step_(x, [h], _rows(x, h, coefficients, noise, rng, samples, per_sample), noise, rng, samples)


def _rows(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    per_sample: bool,
) -> Tensor:
    """The step's row of `linear_step`, (3,), or one for every sample (B, 3)."""
    layout = layout_of(x) or Layout(math.prod(x.shape[1:]), 1)
    state, output = operand(x, layout), operand(h, layout)
    given = None if noise is None else operand(noise, layout)
    table, stride = rows_of(coefficients)
    layout = Layout(layout.size, 1)  # the elements are taken as they lie in memory
    batch, tiles = x.shape[0], layout.tiles
    sums = table.new_empty(2, batch, tiles)
    launch(
        langevin_norms_kernel,
        batch * tiles,
        x.device,
        sums,
        *state,
        *output,
        *(given or (None, 0)),
        table,
        stride,
        None if rng is None else rng.contiguous(),
        None if samples is None else samples.contiguous(),
        layout.size,
        tiles,
        batch * tiles,
        whole=layout.size % 4 == 0,
        **tile_options(x, layout),
    )
    lines, columns = extent(tiles)
    alike = not per_sample and stride == 0
    rows = table.new_empty((3,) if alike else (batch, 3))
    launch(
        langevin_rows_kernel,
        triton.cdiv(batch, lines) if per_sample else 1,
        x.device,
        rows,
        sums,
        tiles,
        batch,
        table,
        stride,
        1 if alike else batch,
        shared=not per_sample,
        lines=lines,
        columns=columns,
        num_warps=4,
    )
    return rows

"""One step of a fixed-step sampler on a GPU: x and the history are read once, noise is drawn in registers."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._states import (
    drawn,
    layout_of,
    like,
    one_by_one,
    operand,
    rows_of,
    safe_to_read,
    tile,
    tile_options,
    without_noise,
)


@triton.jit
def linear_step_kernel(
    out,
    out_stride,
    x,
    x_stride,
    h0,
    h1,
    h2,
    h3,
    h4,
    h5,
    h0_stride,
    h1_stride,
    h2_stride,
    h3_stride,
    h4_stride,
    h5_stride,
    noise,
    noise_stride,
    coefficients,
    coefficient_stride,
    rng,
    samples,
    pixels,
    tiles,
    count: tl.constexpr,
    channels: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """out = a x + sum_k b_k h_k + s z, k < count; one program per tile of a sample."""
    terms = (h0, h1, h2, h3, h4, h5)
    strides = (h0_stride, h1_stride, h2_stride, h3_stride, h4_stride, h5_stride)
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    blocks, offset, there = tile(program % tiles, pixels, channels, wide, block)
    row = coefficients + sample * coefficient_stride
    dtype: tl.constexpr = coefficients.dtype.element_ty
    value = tl.load(row) * tl.load(x + sample * x_stride + offset, there).to(dtype)
    for k in tl.static_range(count):
        value += tl.load(row + k + 1) * tl.load(terms[k] + sample * strides[k] + offset, there).to(dtype)
    s = tl.load(row + count + 1)
    if s != 0:  # noise of weight zero is not looked at
        if noise is not None:
            value += s * tl.load(noise + sample * noise_stride + offset, there).to(dtype)
        if samples is not None:
            value += s * drawn(rng, samples, sample, blocks, offset.shape, dtype)
    tl.store(out + sample * out_stride + offset, value.to(out.dtype.element_ty), there)


def linear_step(
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> Tensor:
    """`fastscore.ops.linear_step`, its arguments checked."""
    out = like(x)
    _compute(out, x, history, coefficients, noise, rng, samples)
    return out


def linear_step_(
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    """`fastscore.ops.linear_step_`, its arguments checked."""
    past = [safe_to_read(h, x) for h in history]
    z = None if noise is None else safe_to_read(noise, x)
    _compute(x, x, past, coefficients, z, rng, samples)


def _compute(
    out: Tensor,
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    """Into `out`, which may be x itself."""
    if x.numel() == 0:
        return
    layout = layout_of(out)
    if layout is None:
        buffer = x.new_empty(x.shape)
        _compute(buffer, x, history, coefficients, noise, rng, samples)
        out.copy_(buffer)
        return
    target, state = operand(out, layout), operand(x, layout)
    terms = [operand(h, layout) for h in history]
    given = None if noise is None else operand(noise, layout)
    rows, row_stride = rows_of(coefficients)
    batch = x.shape[0]
    if rng is None:
        operands = [target, state, *terms, *([] if given is None else [given])]
        layout, batch = without_noise(layout, batch, row_stride == 0, operands)
    launch(
        linear_step_kernel,
        batch * layout.tiles,
        x.device,
        *target,
        *state,
        *one_by_one(terms, 6),
        *(given or (None, 0)),
        rows,
        row_stride,
        None if rng is None else rng.contiguous(),
        None if samples is None else samples.contiguous(),
        layout.pixels,
        layout.tiles,
        count=len(terms),
        channels=layout.channels,
        **tile_options(x, layout),
    )

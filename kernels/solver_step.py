"""One step of a sampler that clamps, or keeps, a prediction made of the network output: read once, written once."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._states import (
    check_apart,
    drawn,
    empty,
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
def solver_step_kernel(
    out,
    out_stride,
    kept,
    kept_stride,
    x,
    x_stride,
    h,
    h_stride,
    h1,
    h2,
    h3,
    h1_stride,
    h2_stride,
    h3_stride,
    exponent,
    exponent_stride,
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
    """kept = m = clamp(p x + q h, -c, c), out = a x + b_0 m + sum_k b_k h_k + w z, k <= count; one program per tile."""
    terms = (h1, h2, h3)
    strides = (h1_stride, h2_stride, h3_stride)
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    blocks, offset, there = tile(program % tiles, pixels, channels, wide, block)
    row = coefficients + sample * coefficient_stride
    dtype: tl.constexpr = coefficients.dtype.element_ty
    state = tl.load(x + sample * x_stride + offset, there).to(dtype)
    m = tl.load(row) * state + tl.load(row + 1) * tl.load(h + sample * h_stride + offset, there).to(dtype)
    c = tl.load(row + 2)
    m = tl.where(m > c, c, tl.where(m < -c, -c, m))  # NaN is not clamped
    value = tl.load(row + 3) * state + tl.load(row + 4) * m
    for k in tl.static_range(count):
        value += tl.load(row + k + 5) * tl.load(terms[k] + sample * strides[k] + offset, there).to(dtype)
    if kept is not None:
        tl.store(kept + sample * kept_stride + offset, m.to(kept.dtype.element_ty), there)
    s = tl.load(row + count + 5)
    if noise is not None or samples is not None:
        if s != 0:  # noise of weight zero is not looked at, nor is its exponent
            if noise is not None:
                z = tl.load(noise + sample * noise_stride + offset, there).to(dtype)
            else:
                z = drawn(rng, samples, sample, blocks, offset.shape, dtype)
            if exponent is not None:
                v = tl.load(exponent + sample * exponent_stride + offset, there).to(dtype)
                z *= tl.exp(tl.load(row + count + 6) * v)
            value += s * z
    tl.store(out + sample * out_stride + offset, value.to(out.dtype.element_ty), there)


def solver_step(
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    exponent: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`fastscore.ops.solver_step`, its arguments checked."""
    out, m = like(x), like(x)
    _compute(out, m, x, h, history, coefficients, exponent, noise, rng, samples)
    return out, m


def solver_step_(
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    exponent: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    *,
    m: Tensor | None = None,
) -> None:
    """`fastscore.ops.solver_step_`, its arguments checked."""
    if m is not None:
        check_apart(m, [t for t in (x, h, *history, exponent, noise) if t is not None])
    past = [safe_to_read(earlier, x) for earlier in history]
    v, z = (None if t is None else safe_to_read(t, x) for t in (exponent, noise))
    _compute(x, m, x, safe_to_read(h, x), past, coefficients, v, z, rng, samples)


def _compute(
    out: Tensor,
    m: Tensor | None,
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    exponent: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    """Into `out`, which may be x itself, and `m`."""
    if x.numel() == 0:
        return
    rest = x, h, history, coefficients, exponent, noise, rng, samples
    layout = layout_of(out)
    if layout is None:
        buffer, kept = x.new_empty(x.shape), None if m is None else x.new_empty(x.shape)
        _compute(buffer, kept, *rest)
        out.copy_(buffer)
        if m is not None and kept is not None:
            m.copy_(kept)
        return
    if m is not None and layout_of(m) != layout:
        kept = empty(x, layout)
        _compute(out, kept, *rest)
        m.copy_(kept)
        return
    target, state, output = operand(out, layout), operand(x, layout), operand(h, layout)
    second = None if m is None else operand(m, layout)
    terms = [operand(earlier, layout) for earlier in history]
    given = None if noise is None else operand(noise, layout)
    spread = None if exponent is None or (noise is None and rng is None) else operand(exponent, layout)
    rows, row_stride = rows_of(coefficients)
    batch = x.shape[0]
    if rng is None:
        operands = [o for o in (target, second, state, output, *terms, spread, given) if o is not None]
        layout, batch = without_noise(layout, batch, row_stride == 0, operands)
    launch(
        solver_step_kernel,
        batch * layout.tiles,
        x.device,
        *target,
        *(second or (None, 0)),
        *state,
        *output,
        *one_by_one(terms, 3),
        *(spread or (None, 0)),
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

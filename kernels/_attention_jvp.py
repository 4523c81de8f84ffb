"""The value of attention and its tangent, in one pass over the keys."""

# Tuples of tiles grow in unrolled loops, and Triton knows no `*tuple`.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._attention import (
    LN2,
    LOG2E,
    dot,
    dots,
    finish,
    head_of,
    is_wide,
    like_q,
    load_all,
    load_block,
    minus,
    operands_of,
    readable,
    scaled,
    store_block,
    strides_of,
    sums_dtype,
    zeros,
)
from ._attention_plan import chosen
from ._launch import launch


@triton.jit
def attention_jvp_kernel(
    y,
    y_t,
    attended,
    y_strides,
    lse,
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    q_t,
    q_t_strides,
    k_t,
    k_t_strides,
    v_t,
    v_t_strides,
    residual,
    residual_strides,
    residual_t,
    residual_t_strides,
    heads,
    N,
    M,
    blocks,
    scale: tl.constexpr,
    output_scale: tl.constexpr,
    size: tl.constexpr,
    pieces: tl.constexpr,
    columns: tl.constexpr,
    slices: tl.constexpr,
    resident: tl.constexpr,
    even: tl.constexpr,
    precision: tl.constexpr,
    wide: tl.constexpr,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
):
    """`attention_fwd_kernel` with the tangent of y beside it, in the same walk over the keys.

    With weights e, which sum to l, the tangent is sum(e (v. + (s. - center) v)) / l, center being the mean of s. with
    these weights: kept up to date as they come, so that what is rounded to 16 bits is small where s. has an offset.
    What rounding the center leaves of the mean is subtracted in the end.
    """
    program = tl.program_id(0)
    start = program // slices % blocks * block_n
    first = program % slices * columns[0][1]
    sample = (program // slices // blocks // heads).to(tl.int64)
    head = (program // slices // blocks % heads).to(tl.int64)
    q = head_of(q, sample, head, q_strides)
    k = head_of(k, sample, head, k_strides)
    v = head_of(v, sample, head, v_strides)
    dtype: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float64 else tl.float32
    moved: tl.constexpr = q_t is not None or k_t is not None  # whether the scores move

    held, held_t = (), ()
    if resident:
        held = load_all(q, start, q_strides, N, block_n, 0, pieces, size, False, wide)
    if q_t is not None:
        q_t = head_of(q_t, sample, head, q_t_strides)
        if resident:
            held_t = load_all(q_t, start, q_t_strides, N, block_n, 0, pieces, size, False, wide)
    if k_t is not None:
        k_t = head_of(k_t, sample, head, k_t_strides)
    if v_t is not None:
        v_t = head_of(v_t, sample, head, v_t_strides)
    a = zeros(block_n, columns, dtype)
    a_t = zeros(block_n, columns, dtype)
    top = tl.full((block_n,), float("-inf"), dtype)
    total = tl.zeros((block_n,), dtype)
    center = tl.zeros((block_n,), dtype)
    rest = tl.zeros((block_n,), dtype)
    for key in range(0, M, block_m):
        s = tl.zeros((block_n, block_m), dtype)
        s_t = tl.zeros((block_n, block_m), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                rows = held[i]
            else:
                rows = load_block(q, start, q_strides, N, block_n, 0, pieces[i], size, False, wide)
            keys = tl.trans(load_block(k, key, k_strides, M, block_m, 0, pieces[i], size, even, wide))
            s = dot(rows, keys, s, precision)
            if k_t is not None:
                keys_t = tl.trans(load_block(k_t, key, k_t_strides, M, block_m, 0, pieces[i], size, even, wide))
                s_t = dot(rows, keys_t, s_t, precision)
            if q_t is not None:
                if resident:
                    rows = held_t[i]
                else:
                    rows = load_block(q_t, start, q_t_strides, N, block_n, 0, pieces[i], size, False, wide)
                s_t = dot(rows, keys, s_t, precision)
        if not even:
            s = tl.where(tl.arange(0, block_m)[None, :] < M - key, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        e = tl.exp2((s - new_top[:, None]) * (scale * LOG2E))  # the difference first: it is exact where it matters
        shrink = tl.exp2((top - new_top) * (scale * LOG2E))
        top = new_top
        before = total * shrink
        total = before + tl.sum(e, 1)
        a = scaled(a, shrink)
        a_t = scaled(a_t, shrink)
        low = e.to(v.dtype.element_ty)
        tiles = load_all(v, key, v_strides, M, block_m, first, columns, size, even, wide)
        if moved:
            new_center = center + tl.sum(e * (s_t * scale - center[:, None]), 1) / total
            shift = new_center - center
            center = new_center
            a_t = minus(a_t, a, shift)
            e_t = e * (s_t * scale - center[:, None])
            rest = rest * shrink - shift * before + tl.sum(e_t, 1)
            a_t = dots(e_t.to(v.dtype.element_ty), tiles, a_t, precision)
        a = dots(low, tiles, a, precision)
        if v_t is not None:
            tiles = load_all(v_t, key, v_t_strides, M, block_m, first, columns, size, even, wide)
            a_t = dots(low, tiles, a_t, precision)

    a = scaled(a, 1 / total)
    a_t = minus(scaled(a_t, 1 / total), a, rest / total)
    if lse is not None and first == 0:
        row = start + tl.arange(0, block_n)
        tl.store(lse + (sample * heads + head) * N + row, top * scale + tl.log2(total) * LN2, row < N)
    if attended is not None:
        store_block(
            head_of(attended, sample, head, y_strides), start, y_strides, N, a, block_n, first, columns, size, wide
        )
    y = head_of(y, sample, head, y_strides)
    if residual is not None:
        residual = head_of(residual, sample, head, residual_strides)
    finish(y, start, y_strides, N, a, residual, residual_strides, output_scale, block_n, first, columns, size, wide)
    y_t = head_of(y_t, sample, head, y_strides)
    if residual_t is not None:
        residual_t = head_of(residual_t, sample, head, residual_t_strides)
    finish(
        y_t,
        start,
        y_strides,
        N,
        a_t,
        residual_t,
        residual_t_strides,
        output_scale,
        block_n,
        first,
        columns,
        size,
        wide,
    )


def attention_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None,
    q_t: Tensor | None,
    k_t: Tensor | None,
    v_t: Tensor | None,
    residual_t: Tensor | None,
    scale: float,
    output_scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`fastscore.reference.attention.attention_jvp`."""
    y, y_t = like_q(q), like_q(q)
    attended = like_q(q) if keep and (residual is not None or output_scale != 1) else q.new_empty(0)
    lse = q.new_empty(q.shape[:3] if keep else (0,), dtype=sums_dtype(q))
    if y.numel() == 0:
        return y, y_t, attended, lse
    q, k, v = (readable(t) for t in (q, k, v))
    q_t, k_t, v_t = (None if t is None else readable(t) for t in (q_t, k_t, v_t))
    n, m = q.shape[2], k.shape[2]

    def start(options: dict[str, Any]) -> None:
        blocks = triton.cdiv(n, options["block_n"])
        launch(
            attention_jvp_kernel,
            q.shape[0] * q.shape[1] * blocks * options["slices"],
            q.device,
            y,
            y_t,
            attended if attended.numel() else None,
            strides_of(y),
            lse if keep else None,
            *operands_of(q, k, v, q_t, k_t, v_t, residual, residual_t),
            q.shape[1],
            n,
            m,
            blocks,
            scale=scale,
            output_scale=output_scale,
            even=m % options["block_m"] == 0,
            wide=is_wide(y, q, k, v, q_t, k_t, v_t, residual, residual_t),
            **options,
        )

    start(chosen("jvp", q, n, m, start))
    return y, y_t, attended, lse

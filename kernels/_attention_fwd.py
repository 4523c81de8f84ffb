"""The value of attention."""

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
def attention_fwd_kernel(
    y,
    attended,
    y_strides,
    lse,
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    residual,
    residual_strides,
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
    """y = output_scale (softmax(scale q k^T) v + residual) for a block of queries, and a slice of the columns of v."""
    program = tl.program_id(0)
    start = program // slices % blocks * block_n
    first = program % slices * columns[0][1]
    sample = (program // slices // blocks // heads).to(tl.int64)
    head = (program // slices // blocks % heads).to(tl.int64)
    q = head_of(q, sample, head, q_strides)
    k = head_of(k, sample, head, k_strides)
    v = head_of(v, sample, head, v_strides)
    dtype: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float64 else tl.float32

    held = ()
    if resident:
        held = load_all(q, start, q_strides, N, block_n, 0, pieces, size, False, wide)
    a = zeros(block_n, columns, dtype)
    top = tl.full((block_n,), float("-inf"), dtype)
    total = tl.zeros((block_n,), dtype)
    for key in range(0, M, block_m):
        s = tl.zeros((block_n, block_m), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                rows = held[i]
            else:
                rows = load_block(q, start, q_strides, N, block_n, 0, pieces[i], size, False, wide)
            tile = load_block(k, key, k_strides, M, block_m, 0, pieces[i], size, even, wide)
            s = dot(rows, tl.trans(tile), s, precision)
        if not even:
            s = tl.where(tl.arange(0, block_m)[None, :] < M - key, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        e = tl.exp2((s - new_top[:, None]) * (scale * LOG2E))  # the difference first: it is exact where it matters
        shrink = tl.exp2((top - new_top) * (scale * LOG2E))
        top = new_top
        total = total * shrink + tl.sum(e, 1)
        tiles = load_all(v, key, v_strides, M, block_m, first, columns, size, even, wide)
        a = dots(e.to(v.dtype.element_ty), tiles, scaled(a, shrink), precision)

    a = scaled(a, 1 / total)
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


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, scale: float, output_scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`fastscore.reference.attention.attention_fwd`."""
    y = like_q(q)
    attended = like_q(q) if keep and (residual is not None or output_scale != 1) else q.new_empty(0)
    lse = q.new_empty(q.shape[:3] if keep else (0,), dtype=sums_dtype(q))
    if y.numel() == 0:
        return y, attended, lse
    q, k, v = (readable(t) for t in (q, k, v))
    n, m = q.shape[2], k.shape[2]

    def start(options: dict[str, Any]) -> None:
        blocks = triton.cdiv(n, options["block_n"])
        launch(
            attention_fwd_kernel,
            q.shape[0] * q.shape[1] * blocks * options["slices"],
            q.device,
            y,
            attended if attended.numel() else None,
            strides_of(y),
            lse if keep else None,
            *operands_of(q, k, v, residual),
            q.shape[1],
            n,
            m,
            blocks,
            scale=scale,
            output_scale=output_scale,
            even=m % options["block_m"] == 0,
            wide=is_wide(y, q, k, v, residual),
            **options,
        )

    start(chosen("fwd", q, n, m, start))
    return y, attended, lse

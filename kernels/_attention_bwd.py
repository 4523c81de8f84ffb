"""The gradients of attention, without atomics."""

# Tuples of tiles grow in unrolled loops, and Triton knows no `*tuple`.
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._attention import (
    LOG2E,
    dot,
    dots,
    head_of,
    is_wide,
    like_q,
    load_all,
    load_block,
    operands_of,
    readable,
    scaled,
    store_block,
    zeros,
)
from ._attention_plan import chosen
from ._launch import launch


@triton.jit
def attention_delta_kernel(
    delta,
    grad,
    grad_strides,
    attended,
    attended_strides,
    heads,
    N,
    blocks,
    output_scale: tl.constexpr,
    size: tl.constexpr,
    width: tl.constexpr,
    wide: tl.constexpr,
    block_n: tl.constexpr,
):
    """delta = output_scale sum over the columns of grad attended: what all weights of a query have in common."""
    program = tl.program_id(0)
    start = program % blocks * block_n
    sample = (program // blocks // heads).to(tl.int64)
    head = (program // blocks % heads).to(tl.int64)
    grad = head_of(grad, sample, head, grad_strides)
    attended = head_of(attended, sample, head, attended_strides)
    dtype: tl.constexpr = delta.dtype.element_ty
    sums = tl.zeros((block_n, width), dtype)
    for column in tl.static_range(0, size, width):
        g = load_block(grad, start, grad_strides, N, block_n, column, (0, width, size % width != 0), size, False, wide)
        a = load_block(
            attended, start, attended_strides, N, block_n, column, (0, width, size % width != 0), size, False, wide
        )
        sums += g.to(dtype) * a.to(dtype)
    row = start + tl.arange(0, block_n)
    tl.store(delta + (sample * heads + head) * N + row, tl.sum(sums, 1) * output_scale, row < N)


@triton.jit
def attention_grad_q_kernel(
    grad_q,
    grad_q_strides,
    grad,
    grad_strides,
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    lse,
    delta,
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
    """The gradient of a block of queries, and a slice of its columns: scale sum over the keys of ds k."""
    program = tl.program_id(0)
    start = program // slices % blocks * block_n
    first = program % slices * columns[0][1]
    sample = (program // slices // blocks // heads).to(tl.int64)
    head = (program // slices // blocks % heads).to(tl.int64)
    q = head_of(q, sample, head, q_strides)
    k = head_of(k, sample, head, k_strides)
    v = head_of(v, sample, head, v_strides)
    grad = head_of(grad, sample, head, grad_strides)
    dtype: tl.constexpr = lse.dtype.element_ty
    row = start + tl.arange(0, block_n)
    at = (sample * heads + head) * N + row
    base = tl.load(lse + at, row < N, float("inf"))
    common = tl.load(delta + at, row < N, 0.0)

    held, held_grad = (), ()
    if resident:
        held = load_all(q, start, q_strides, N, block_n, 0, pieces, size, False, wide)
        held_grad = load_all(grad, start, grad_strides, N, block_n, 0, pieces, size, False, wide)
    sums = zeros(block_n, columns, dtype)
    for key in range(0, M, block_m):
        s = tl.zeros((block_n, block_m), dtype)
        dp = tl.zeros((block_n, block_m), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                rows, rows_grad = held[i], held_grad[i]
            else:
                rows = load_block(q, start, q_strides, N, block_n, 0, pieces[i], size, False, wide)
                rows_grad = load_block(grad, start, grad_strides, N, block_n, 0, pieces[i], size, False, wide)
            tile = load_block(k, key, k_strides, M, block_m, 0, pieces[i], size, even, wide)
            s = dot(rows, tl.trans(tile), s, precision)
            tile = load_block(v, key, v_strides, M, block_m, 0, pieces[i], size, even, wide)
            dp = dot(rows_grad, tl.trans(tile), dp, precision)
        p = tl.exp2((s * scale - base[:, None]) * LOG2E)
        if not even:
            p = tl.where(tl.arange(0, block_m)[None, :] < M - key, p, 0.0)
        ds = (p * (dp * output_scale - common[:, None])).to(k.dtype.element_ty)
        tiles = load_all(k, key, k_strides, M, block_m, first, columns, size, even, wide)
        sums = dots(ds, tiles, sums, precision)
    sums = scaled(sums, tl.full((block_n,), scale, dtype))
    grad_q = head_of(grad_q, sample, head, grad_q_strides)
    store_block(grad_q, start, grad_q_strides, N, sums, block_n, first, columns, size, wide)


@triton.jit
def attention_grad_kv_kernel(
    grad_k,
    grad_k_strides,
    grad_v,
    grad_v_strides,
    grad,
    grad_strides,
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    lse,
    delta,
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
    """The gradients of a block of keys and values, and a slice of their columns: sums over the queries."""
    program = tl.program_id(0)
    start = program // slices % blocks * block_m
    first = program % slices * columns[0][1]
    sample = (program // slices // blocks // heads).to(tl.int64)
    head = (program // slices // blocks % heads).to(tl.int64)
    q = head_of(q, sample, head, q_strides)
    k = head_of(k, sample, head, k_strides)
    v = head_of(v, sample, head, v_strides)
    grad = head_of(grad, sample, head, grad_strides)
    dtype: tl.constexpr = lse.dtype.element_ty
    lse += (sample * heads + head) * N
    delta += (sample * heads + head) * N

    held_k, held_v = (), ()
    if resident:
        held_k = load_all(k, start, k_strides, M, block_m, 0, pieces, size, False, wide)
        held_v = load_all(v, start, v_strides, M, block_m, 0, pieces, size, False, wide)
    sums_k = zeros(block_m, columns, dtype)
    sums_v = zeros(block_m, columns, dtype)
    for query in range(0, N, block_n):
        s = tl.zeros((block_m, block_n), dtype)
        dp = tl.zeros((block_m, block_n), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                keys, values = held_k[i], held_v[i]
            else:
                keys = load_block(k, start, k_strides, M, block_m, 0, pieces[i], size, False, wide)
                values = load_block(v, start, v_strides, M, block_m, 0, pieces[i], size, False, wide)
            tile = load_block(q, query, q_strides, N, block_n, 0, pieces[i], size, even, wide)
            s = dot(keys, tl.trans(tile), s, precision)
            tile = load_block(grad, query, grad_strides, N, block_n, 0, pieces[i], size, even, wide)
            dp = dot(values, tl.trans(tile), dp, precision)
        row = query + tl.arange(0, block_n)
        base = tl.load(lse + row, row < N, float("inf"))  # where there is no query, p is 0
        common = tl.load(delta + row, row < N, 0.0)
        p = tl.exp2((s * scale - base[None, :]) * LOG2E)
        ds = (p * (dp * output_scale - common[None, :])).to(q.dtype.element_ty)
        tiles = load_all(grad, query, grad_strides, N, block_n, first, columns, size, even, wide)
        sums_v = dots(p.to(q.dtype.element_ty), tiles, sums_v, precision)
        tiles = load_all(q, query, q_strides, N, block_n, first, columns, size, even, wide)
        sums_k = dots(ds, tiles, sums_k, precision)
    sums_k = scaled(sums_k, tl.full((block_m,), scale, dtype))
    sums_v = scaled(sums_v, tl.full((block_m,), output_scale, dtype))
    grad_k = head_of(grad_k, sample, head, grad_k_strides)
    grad_v = head_of(grad_v, sample, head, grad_v_strides)
    store_block(grad_k, start, grad_k_strides, M, sums_k, block_m, first, columns, size, wide)
    store_block(grad_v, start, grad_v_strides, M, sums_v, block_m, first, columns, size, wide)


def attention_bwd(
    grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, lse: Tensor, scale: float, output_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`fastscore.reference.attention.attention_bwd`. No atomics: the same bits at every run."""
    grad_q, grad_k, grad_v = like_q(q), like_q(k), like_q(v)
    if q.numel() == 0:
        return grad_q, grad_k.zero_(), grad_v.zero_()
    grad, q, k, v, attended = (readable(t) for t in (grad_y, q, k, v, attended))
    lse = lse.contiguous()
    delta = torch.empty_like(lse)
    n, m = q.shape[2], k.shape[2]
    heads = q.shape[0] * q.shape[1]
    wide = is_wide(grad_q, grad_k, grad_v, grad, q, k, v, attended)
    rows = min(32, triton.next_power_of_2(n))
    launch(
        attention_delta_kernel,
        heads * triton.cdiv(n, rows),
        q.device,
        delta,
        *operands_of(grad, attended),
        q.shape[1],
        n,
        triton.cdiv(n, rows),
        output_scale=output_scale,
        size=q.shape[-1],
        width=min(128, triton.next_power_of_2(q.shape[-1])),
        wide=wide,
        block_n=rows,
        num_warps=4,
    )

    def start_grad_q(options: dict[str, Any]) -> None:
        blocks = triton.cdiv(n, options["block_n"])
        launch(
            attention_grad_q_kernel,
            heads * blocks * options["slices"],
            q.device,
            *operands_of(grad_q, grad, q, k, v),
            lse,
            delta,
            q.shape[1],
            n,
            m,
            blocks,
            scale=scale,
            output_scale=output_scale,
            even=m % options["block_m"] == 0,
            wide=wide,
            **options,
        )

    start_grad_q(chosen("grad_q", q, n, m, start_grad_q))

    def start_grad_kv(options: dict[str, Any]) -> None:
        blocks = triton.cdiv(m, options["block_m"])
        launch(
            attention_grad_kv_kernel,
            heads * blocks * options["slices"],
            q.device,
            *operands_of(grad_k, grad_v, grad, q, k, v),
            lse,
            delta,
            q.shape[1],
            n,
            m,
            blocks,
            scale=scale,
            output_scale=output_scale,
            even=n % options["block_n"] == 0,
            wide=wide,
            **options,
        )

    start_grad_kv(chosen("grad_kv", q, n, m, start_grad_kv))
    return grad_q, grad_k, grad_v

"""Attention on a GPU in flash form: no score leaves the registers, in value, in backward and in forward mode.

A program holds a block of queries (for the gradients of k and v: of keys) and walks over the blocks of the others.
Head dimensions that are no power of two are cut into pieces that are, so that little is multiplied with padding; where
the results of a block are too large for the registers, its columns are cut into slices, with a program each.
"""

# Tuples of tiles grow in unrolled loops, and Triton knows no `*tuple`.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2))
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _dot(a, b, sums, precision: tl.constexpr):
    if INTERPRETED and a.dtype == tl.bfloat16:  # numpy has no bfloat16; products of two are exact in float32
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=precision)


@triton.jit
def _load(
    pointer,
    start,
    stride,
    limit,
    block: tl.constexpr,
    first,
    piece: tl.constexpr,
    size: tl.constexpr,
    even: tl.constexpr,
    wide: tl.constexpr,
):
    """Rows start ... start + block of a matrix, and the columns of a piece from `first` on; 0 beyond its end.

    even: all of these rows are below `limit`.
    """
    rows = tl.arange(0, block)
    columns = first + piece[0] + tl.arange(0, piece[1])
    places = pointer + tl.cast(start, tl.int64) * stride + (_wide(rows, wide) * stride)[:, None] + columns[None, :]
    if even and not piece[2]:
        tile = tl.load(places)
    elif even:
        tile = tl.load(places, columns[None, :] < size, 0.0)
    elif not piece[2]:
        tile = tl.load(places, rows[:, None] < limit - start, 0.0)
    else:
        tile = tl.load(places, (rows[:, None] < limit - start) & (columns[None, :] < size), 0.0)
    return tile


@triton.jit
def _load_all(
    pointer,
    start,
    stride,
    limit,
    block: tl.constexpr,
    first,
    pieces: tl.constexpr,
    size: tl.constexpr,
    even: tl.constexpr,
    wide: tl.constexpr,
):
    tiles = ()
    for i in tl.static_range(len(pieces)):
        tiles = tiles + (_load(pointer, start, stride, limit, block, first, pieces[i], size, even, wide),)
    return tiles


@triton.jit
def _zeros(block: tl.constexpr, pieces: tl.constexpr, dtype: tl.constexpr):
    tiles = ()
    for i in tl.static_range(len(pieces)):
        tiles = tiles + (tl.zeros((block, pieces[i][1]), dtype),)
    return tiles


@triton.jit
def _dots(weights, tiles, sums, precision: tl.constexpr):
    """sums + weights @ tiles, piece by piece."""
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (_dot(weights, tiles[i], sums[i], precision),)
    return result


@triton.jit
def _scaled(tiles, factor):
    """Each row times its factor."""
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (tiles[i] * factor[:, None],)
    return result


@triton.jit
def _minus(tiles, others, factor):
    """tiles - factor others, a factor to each row."""
    result = ()
    for i in tl.static_range(len(tiles)):
        result = result + (tiles[i] - factor[:, None] * others[i],)
    return result


@triton.jit
def _store(
    pointer,
    start,
    stride,
    limit,
    tiles,
    block: tl.constexpr,
    first,
    pieces: tl.constexpr,
    size: tl.constexpr,
    wide: tl.constexpr,
):
    """The opposite of `_load_all`."""
    rows = tl.arange(0, block)
    for i in tl.static_range(len(pieces)):
        columns = first + pieces[i][0] + tl.arange(0, pieces[i][1])
        places = pointer + tl.cast(start, tl.int64) * stride + (_wide(rows, wide) * stride)[:, None] + columns[None, :]
        there = rows[:, None] < limit - start
        if pieces[i][2]:
            there = there & (columns[None, :] < size)
        tl.store(places, tiles[i].to(pointer.dtype.element_ty), there)


@triton.jit
def _finish(
    y,
    start,
    stride,
    limit,
    tiles,
    residual,
    residual_strides,
    output_scale: tl.constexpr,
    block: tl.constexpr,
    first,
    pieces: tl.constexpr,
    size: tl.constexpr,
    wide: tl.constexpr,
):
    """y = output_scale * (tiles + residual), stored. The residual has strides of rows and of columns."""
    result = ()
    rows = tl.arange(0, block)
    for i in tl.static_range(len(pieces)):
        tile = tiles[i]
        if residual is not None:
            columns = first + pieces[i][0] + tl.arange(0, pieces[i][1])
            places = residual + tl.cast(start, tl.int64) * residual_strides[2]
            places = places + (_wide(rows, wide) * residual_strides[2])[:, None]
            places = places + (_wide(columns, wide) * residual_strides[3])[None, :]
            there = (rows[:, None] < limit - start) & (columns[None, :] < size)
            tile += tl.load(places, there, 0.0).to(tile.dtype)
        result = result + (tile * output_scale,)
    _store(y, start, stride, limit, result, block, first, pieces, size, wide)


@triton.jit
def _wide(index, wide: tl.constexpr):
    if wide:
        result = index.to(tl.int64)
    else:
        result = index
    return result


@triton.jit
def _head(pointer, sample, head, strides):
    """Where the matrix of a sample and a head begins."""
    return pointer + sample * strides[0] + head * strides[1]


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
    q = _head(q, sample, head, q_strides)
    k = _head(k, sample, head, k_strides)
    v = _head(v, sample, head, v_strides)
    dtype: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float64 else tl.float32

    held = ()
    if resident:
        held = _load_all(q, start, q_strides[2], N, block_n, 0, pieces, size, False, wide)
    a = _zeros(block_n, columns, dtype)
    top = tl.full((block_n,), float("-inf"), dtype)
    total = tl.zeros((block_n,), dtype)
    for key in range(0, M, block_m):
        s = tl.zeros((block_n, block_m), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                rows = held[i]
            else:
                rows = _load(q, start, q_strides[2], N, block_n, 0, pieces[i], size, False, wide)
            tile = _load(k, key, k_strides[2], M, block_m, 0, pieces[i], size, even, wide)
            s = _dot(rows, tl.trans(tile), s, precision)
        if not even:
            s = tl.where(tl.arange(0, block_m)[None, :] < M - key, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        e = tl.exp2((s - new_top[:, None]) * (scale * LOG2E))  # the difference first: it is exact where it matters
        shrink = tl.exp2((top - new_top) * (scale * LOG2E))
        top = new_top
        total = total * shrink + tl.sum(e, 1)
        tiles = _load_all(v, key, v_strides[2], M, block_m, first, columns, size, even, wide)
        a = _dots(e.to(v.dtype.element_ty), tiles, _scaled(a, shrink), precision)

    a = _scaled(a, 1 / total)
    if lse is not None and first == 0:
        row = start + tl.arange(0, block_n)
        tl.store(lse + (sample * heads + head) * N + row, top * scale + tl.log2(total) * LN2, row < N)
    if attended is not None:
        _store(_head(attended, sample, head, y_strides), start, y_strides[2], N, a, block_n, first, columns, size, wide)
    y = _head(y, sample, head, y_strides)
    if residual is not None:
        residual = _head(residual, sample, head, residual_strides)
    _finish(y, start, y_strides[2], N, a, residual, residual_strides, output_scale, block_n, first, columns, size, wide)


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, scale: float, output_scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`fastscore.reference.attention.attention_fwd`."""
    y = _like(q)
    attended = _like(q) if keep and (residual is not None or output_scale != 1) else q.new_empty(0)
    lse = q.new_empty(q.shape[:3] if keep else (0,), dtype=_sums(q))
    if y.numel() == 0:
        return y, attended, lse
    q, k, v = (_readable(t) for t in (q, k, v))
    n, m = q.shape[2], k.shape[2]
    options = _config("fwd", q, n, m)
    blocks = triton.cdiv(n, options["block_n"])
    launch(
        attention_fwd_kernel,
        q.shape[0] * q.shape[1] * blocks * options["slices"],
        q.device,
        y,
        attended if attended.numel() else None,
        y.stride()[:3],
        lse if keep else None,
        *_operands(q, k, v),
        residual,
        (0, 0, 0, 0) if residual is None else residual.stride(),
        q.shape[1],
        n,
        m,
        blocks,
        scale=scale,
        output_scale=output_scale,
        even=m % options["block_m"] == 0,
        wide=_is_wide(y, q, k, v, residual),
        **options,
    )
    return y, attended, lse


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
    q = _head(q, sample, head, q_strides)
    k = _head(k, sample, head, k_strides)
    v = _head(v, sample, head, v_strides)
    dtype: tl.constexpr = tl.float64 if q.dtype.element_ty == tl.float64 else tl.float32
    moved: tl.constexpr = q_t is not None or k_t is not None  # whether the scores move

    held, held_t = (), ()
    if resident:
        held = _load_all(q, start, q_strides[2], N, block_n, 0, pieces, size, False, wide)
    if q_t is not None:
        q_t = _head(q_t, sample, head, q_t_strides)
        if resident:
            held_t = _load_all(q_t, start, q_t_strides[2], N, block_n, 0, pieces, size, False, wide)
    if k_t is not None:
        k_t = _head(k_t, sample, head, k_t_strides)
    if v_t is not None:
        v_t = _head(v_t, sample, head, v_t_strides)
    a = _zeros(block_n, columns, dtype)
    a_t = _zeros(block_n, columns, dtype)
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
                rows = _load(q, start, q_strides[2], N, block_n, 0, pieces[i], size, False, wide)
            keys = tl.trans(_load(k, key, k_strides[2], M, block_m, 0, pieces[i], size, even, wide))
            s = _dot(rows, keys, s, precision)
            if k_t is not None:
                keys_t = tl.trans(_load(k_t, key, k_t_strides[2], M, block_m, 0, pieces[i], size, even, wide))
                s_t = _dot(rows, keys_t, s_t, precision)
            if q_t is not None:
                if resident:
                    rows = held_t[i]
                else:
                    rows = _load(q_t, start, q_t_strides[2], N, block_n, 0, pieces[i], size, False, wide)
                s_t = _dot(rows, keys, s_t, precision)
        if not even:
            s = tl.where(tl.arange(0, block_m)[None, :] < M - key, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        e = tl.exp2((s - new_top[:, None]) * (scale * LOG2E))  # the difference first: it is exact where it matters
        shrink = tl.exp2((top - new_top) * (scale * LOG2E))
        top = new_top
        before = total * shrink
        total = before + tl.sum(e, 1)
        a = _scaled(a, shrink)
        a_t = _scaled(a_t, shrink)
        low = e.to(v.dtype.element_ty)
        tiles = _load_all(v, key, v_strides[2], M, block_m, first, columns, size, even, wide)
        if moved:
            new_center = center + tl.sum(e * (s_t * scale - center[:, None]), 1) / total
            shift = new_center - center
            center = new_center
            a_t = _minus(a_t, a, shift)
            e_t = e * (s_t * scale - center[:, None])
            rest = rest * shrink - shift * before + tl.sum(e_t, 1)
            a_t = _dots(e_t.to(v.dtype.element_ty), tiles, a_t, precision)
        a = _dots(low, tiles, a, precision)
        if v_t is not None:
            tiles = _load_all(v_t, key, v_t_strides[2], M, block_m, first, columns, size, even, wide)
            a_t = _dots(low, tiles, a_t, precision)

    a = _scaled(a, 1 / total)
    a_t = _minus(_scaled(a_t, 1 / total), a, rest / total)
    if lse is not None and first == 0:
        row = start + tl.arange(0, block_n)
        tl.store(lse + (sample * heads + head) * N + row, top * scale + tl.log2(total) * LN2, row < N)
    if attended is not None:
        _store(_head(attended, sample, head, y_strides), start, y_strides[2], N, a, block_n, first, columns, size, wide)
    y = _head(y, sample, head, y_strides)
    if residual is not None:
        residual = _head(residual, sample, head, residual_strides)
    _finish(y, start, y_strides[2], N, a, residual, residual_strides, output_scale, block_n, first, columns, size, wide)
    y_t = _head(y_t, sample, head, y_strides)
    if residual_t is not None:
        residual_t = _head(residual_t, sample, head, residual_t_strides)
    _finish(
        y_t,
        start,
        y_strides[2],
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
    y, y_t = _like(q), _like(q)
    attended = _like(q) if keep and (residual is not None or output_scale != 1) else q.new_empty(0)
    lse = q.new_empty(q.shape[:3] if keep else (0,), dtype=_sums(q))
    if y.numel() == 0:
        return y, y_t, attended, lse
    q, k, v = (_readable(t) for t in (q, k, v))
    q_t, k_t, v_t = (None if t is None else _readable(t) for t in (q_t, k_t, v_t))
    n, m = q.shape[2], k.shape[2]
    options = _config("jvp", q, n, m)
    blocks = triton.cdiv(n, options["block_n"])
    launch(
        attention_jvp_kernel,
        q.shape[0] * q.shape[1] * blocks * options["slices"],
        q.device,
        y,
        y_t,
        attended if attended.numel() else None,
        y.stride()[:3],
        lse if keep else None,
        *_operands(q, k, v, q_t, k_t, v_t),
        residual,
        (0, 0, 0, 0) if residual is None else residual.stride(),
        residual_t,
        (0, 0, 0, 0) if residual_t is None else residual_t.stride(),
        q.shape[1],
        n,
        m,
        blocks,
        scale=scale,
        output_scale=output_scale,
        even=m % options["block_m"] == 0,
        wide=_is_wide(y, q, k, v, q_t, k_t, v_t, residual, residual_t),
        **options,
    )
    return y, y_t, attended, lse


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
    grad = _head(grad, sample, head, grad_strides)
    attended = _head(attended, sample, head, attended_strides)
    dtype: tl.constexpr = delta.dtype.element_ty
    sums = tl.zeros((block_n, width), dtype)
    for column in tl.static_range(0, size, width):
        g = _load(grad, start, grad_strides[2], N, block_n, column, (0, width, size % width != 0), size, False, wide)
        a = _load(
            attended, start, attended_strides[2], N, block_n, column, (0, width, size % width != 0), size, False, wide
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
    q = _head(q, sample, head, q_strides)
    k = _head(k, sample, head, k_strides)
    v = _head(v, sample, head, v_strides)
    grad = _head(grad, sample, head, grad_strides)
    dtype: tl.constexpr = lse.dtype.element_ty
    row = start + tl.arange(0, block_n)
    at = (sample * heads + head) * N + row
    base = tl.load(lse + at, row < N, float("inf"))
    common = tl.load(delta + at, row < N, 0.0)

    held, held_grad = (), ()
    if resident:
        held = _load_all(q, start, q_strides[2], N, block_n, 0, pieces, size, False, wide)
        held_grad = _load_all(grad, start, grad_strides[2], N, block_n, 0, pieces, size, False, wide)
    sums = _zeros(block_n, columns, dtype)
    for key in range(0, M, block_m):
        s = tl.zeros((block_n, block_m), dtype)
        dp = tl.zeros((block_n, block_m), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                rows, rows_grad = held[i], held_grad[i]
            else:
                rows = _load(q, start, q_strides[2], N, block_n, 0, pieces[i], size, False, wide)
                rows_grad = _load(grad, start, grad_strides[2], N, block_n, 0, pieces[i], size, False, wide)
            tile = _load(k, key, k_strides[2], M, block_m, 0, pieces[i], size, even, wide)
            s = _dot(rows, tl.trans(tile), s, precision)
            tile = _load(v, key, v_strides[2], M, block_m, 0, pieces[i], size, even, wide)
            dp = _dot(rows_grad, tl.trans(tile), dp, precision)
        p = tl.exp2((s * scale - base[:, None]) * LOG2E)
        if not even:
            p = tl.where(tl.arange(0, block_m)[None, :] < M - key, p, 0.0)
        ds = (p * (dp * output_scale - common[:, None])).to(k.dtype.element_ty)
        tiles = _load_all(k, key, k_strides[2], M, block_m, first, columns, size, even, wide)
        sums = _dots(ds, tiles, sums, precision)
    sums = _scaled(sums, tl.full((block_n,), scale, dtype))
    grad_q = _head(grad_q, sample, head, grad_q_strides)
    _store(grad_q, start, grad_q_strides[2], N, sums, block_n, first, columns, size, wide)


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
    q = _head(q, sample, head, q_strides)
    k = _head(k, sample, head, k_strides)
    v = _head(v, sample, head, v_strides)
    grad = _head(grad, sample, head, grad_strides)
    dtype: tl.constexpr = lse.dtype.element_ty
    lse += (sample * heads + head) * N
    delta += (sample * heads + head) * N

    held_k, held_v = (), ()
    if resident:
        held_k = _load_all(k, start, k_strides[2], M, block_m, 0, pieces, size, False, wide)
        held_v = _load_all(v, start, v_strides[2], M, block_m, 0, pieces, size, False, wide)
    sums_k = _zeros(block_m, columns, dtype)
    sums_v = _zeros(block_m, columns, dtype)
    for query in range(0, N, block_n):
        s = tl.zeros((block_m, block_n), dtype)
        dp = tl.zeros((block_m, block_n), dtype)
        for i in tl.static_range(len(pieces)):
            if resident:
                keys, values = held_k[i], held_v[i]
            else:
                keys = _load(k, start, k_strides[2], M, block_m, 0, pieces[i], size, False, wide)
                values = _load(v, start, v_strides[2], M, block_m, 0, pieces[i], size, False, wide)
            tile = _load(q, query, q_strides[2], N, block_n, 0, pieces[i], size, even, wide)
            s = _dot(keys, tl.trans(tile), s, precision)
            tile = _load(grad, query, grad_strides[2], N, block_n, 0, pieces[i], size, even, wide)
            dp = _dot(values, tl.trans(tile), dp, precision)
        row = query + tl.arange(0, block_n)
        base = tl.load(lse + row, row < N, float("inf"))  # where there is no query, p is 0
        common = tl.load(delta + row, row < N, 0.0)
        p = tl.exp2((s * scale - base[None, :]) * LOG2E)
        ds = (p * (dp * output_scale - common[None, :])).to(q.dtype.element_ty)
        tiles = _load_all(grad, query, grad_strides[2], N, block_n, first, columns, size, even, wide)
        sums_v = _dots(p.to(q.dtype.element_ty), tiles, sums_v, precision)
        tiles = _load_all(q, query, q_strides[2], N, block_n, first, columns, size, even, wide)
        sums_k = _dots(ds, tiles, sums_k, precision)
    sums_k = _scaled(sums_k, tl.full((block_m,), scale, dtype))
    sums_v = _scaled(sums_v, tl.full((block_m,), output_scale, dtype))
    grad_k = _head(grad_k, sample, head, grad_k_strides)
    grad_v = _head(grad_v, sample, head, grad_v_strides)
    _store(grad_k, start, grad_k_strides[2], M, sums_k, block_m, first, columns, size, wide)
    _store(grad_v, start, grad_v_strides[2], M, sums_v, block_m, first, columns, size, wide)


def attention_bwd(
    grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, lse: Tensor, scale: float, output_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`fastscore.reference.attention.attention_bwd`. No atomics: the same bits at every run."""
    grad_q, grad_k, grad_v = _like(q), _like(k), _like(v)
    if q.numel() == 0:
        return grad_q, grad_k.zero_(), grad_v.zero_()
    grad, q, k, v, attended = (_readable(t) for t in (grad_y, q, k, v, attended))
    lse = lse.contiguous()
    delta = torch.empty_like(lse)
    n, m = q.shape[2], k.shape[2]
    heads = q.shape[0] * q.shape[1]
    wide = _is_wide(grad_q, grad_k, grad_v, grad, q, k, v, attended)
    rows = min(32, triton.next_power_of_2(n))
    launch(
        attention_delta_kernel,
        heads * triton.cdiv(n, rows),
        q.device,
        delta,
        *_operands(grad, attended),
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
    options = _config("grad_q", q, n, m)
    blocks = triton.cdiv(n, options["block_n"])
    launch(
        attention_grad_q_kernel,
        heads * blocks * options["slices"],
        q.device,
        *_operands(grad_q, grad, q, k, v),
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
    options = _config("grad_kv", q, n, m)
    blocks = triton.cdiv(m, options["block_m"])
    launch(
        attention_grad_kv_kernel,
        heads * blocks * options["slices"],
        q.device,
        *_operands(grad_k, grad_v, grad, q, k, v),
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
    return grad_q, grad_k, grad_v


def _like(q: Tensor) -> Tensor:
    """An uninitialized result: dense in the order of q, but with the columns contiguous."""
    result = torch.empty_like(q)
    return result if result.stride(-1) == 1 else q.new_empty(q.shape)


def _sums(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _readable(tensor: Tensor) -> Tensor:
    """The tensor, copied only where its columns are apart."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _operands(*tensors: Tensor | None) -> list[Any]:
    """Each tensor with its strides of samples, heads and rows."""
    return [part for t in tensors for part in (t, (0, 0, 0) if t is None else t.stride()[:3])]


def _is_wide(*tensors: Tensor | None) -> bool:
    """Whether offsets within a block of rows can pass 2^31."""
    return any(s >= 2**22 for t in tensors if t is not None for s in t.stride()[2:])


def _pieces(size: int, largest: int) -> tuple[tuple[int, int, bool], ...]:
    """`size` columns as powers of two of 16 or more: of each its start, its width, and whether it ends beyond."""
    pieces = []
    start = 0
    while start < size:
        width = largest
        while width > 16 and width > size - start and size - start <= width - width // 4:
            width //= 2
        pieces.append((start, width, start + width > size))
        start += width
    return tuple(pieces)


class Plan(NamedTuple):
    """How a kernel is cut.

    Attributes:
        block_n, block_m: queries and keys of a block.
        piece: the widest piece of the head dimension; a power of two.
        width: columns of a slice; a power of two. A head dimension up to this is not sliced.
        resident: whether the block that a program holds stays in registers and shared memory, or is read again.
        warps, stages: of a program, and of its loads ahead.
    """

    block_n: int
    block_m: int
    piece: int
    width: int
    resident: bool
    warps: int
    stages: int


def _plan(kind: str, size: int, itemsize: int) -> Plan:
    """A function of the head dimension and the dtype alone: what fits in registers and 99 KB of shared memory."""
    if itemsize == 8:
        return Plan(16, 16, 16, 32, False, 4, 1)
    if itemsize == 4:  # no tensor cores: operands lie in registers as well
        if kind == "fwd":
            return Plan(32, 32, 16, 128, True, 4, 1) if size <= 128 else Plan(32, 16, 16, 128, False, 4, 1)
        if size <= 64:
            return Plan(32, 16 if kind == "jvp" else 32, 16, 64, True, 4, 1)
        return Plan(32, 16, 16, 32, False, 4, 1)
    if size <= 64:
        return Plan(64, 32 if kind == "jvp" else 64, 64, 256, True, 4, 2)
    if size <= 96 and kind.startswith("grad"):  # two pieces
        return Plan(32, 64, 128, 256, True, 8, 2)
    if size <= 128 and kind == "jvp":
        return Plan(64, 32, 128, 256, True, 8, 2)
    if size <= 128:
        return Plan(64, 64, 128, 256, True, 4 if kind == "fwd" else 8, 2)
    if size <= 256 and kind == "fwd":
        return Plan(64, 32, 128, 256, True, 8, 2)
    if size < 256:  # several pieces, with two results each, take too many registers
        return Plan(32, 32, 128, 128, True, 4, 1)
    if size == 256:
        return Plan(32, 32, 128, 256, True, 8, 1)
    return Plan(64 if kind == "fwd" else 32, 32, 64, 256, False, 8, 1)


def _config(kind: str, q: Tensor, n: int, m: int) -> dict[str, Any]:
    """What a kernel is compiled for: like its rounding, a function of the shape of a sample and the dtype alone."""
    size = q.shape[-1]
    plan = _plan(kind, size, q.element_size())
    slices = triton.cdiv(size, plan.width)
    pieces = _pieces(size, plan.piece)
    return {
        "size": size,
        "pieces": pieces,
        "columns": pieces if slices == 1 else ((0, plan.width, size % plan.width != 0),),
        "slices": slices,
        "resident": plan.resident,
        "precision": _precision(q),
        "block_n": min(plan.block_n, max(16, triton.next_power_of_2(n))),
        "block_m": min(plan.block_m, max(16, triton.next_power_of_2(m))),
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }


def _precision(q: Tensor) -> str:
    """How products of float32 are taken: TF32 only where torch is allowed to, too."""
    return "tf32" if q.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"

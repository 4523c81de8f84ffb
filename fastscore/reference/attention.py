"""Softmax attention in plain PyTorch: the specification of `fastscore.ops.attention`.

With s = scale q k^T, p = softmax(s) over the keys and a = p v (Vaswani et al. 2017, eq. 1),

    y = output_scale (a + residual)

Backward, with g = output_scale grad_y and delta = sum over the channels of g a (Dao et al. 2022, appendix B.2):

    grad_v = p^T g        ds = p (g v^T - delta)        grad_q = scale ds k        grad_k = scale ds^T q
    grad_residual = g

Forward mode (Lu & Song 2024, appendix F), dots being tangents and the mean that over the keys, with weights p:

    s. = scale (q. k^T + q k.^T)        a. = p v. + (p (s. - mean(s.))) v        y. = output_scale (a. + residual.)

16-bit inputs are computed in float32 and rounded once, at the end. `attention` is the formula, differentiable by torch.
The other three functions are the raw operators `torch.ops.fastscore.attention_*` in plain tensor arithmetic, over
blocks of queries, so that no (N, M) scores exist. torch can differentiate them too, and
second derivatives are made that way.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SCORES = 40 * 2**20
"""How many bytes the scores of a block of queries may take; up to five such matrices exist at a time.

More than the 32 MiB from which on glibc gives memory back as soon as it is freed: smaller blocks leave holes behind.
"""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    residual: Tensor | None = None,
    output_scale: float = 1.0,
) -> Tensor:
    """The specification; arguments, shapes and dtypes as in `fastscore.ops.attention`, unchecked."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = op_dtype(q)
    p = torch.softmax(scale * (q.to(dtype) @ k.to(dtype).mT), dim=-1)
    a = p @ v.to(dtype)
    return (output_scale * (a if residual is None else a + residual.to(dtype))).to(q.dtype)


def attention_into(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Writes softmax(scale q k^T) v; all (B, H, N, D), float32 where the kernel runs."""
    out.copy_(attention(q, k, v, scale=scale))


def attention_fwd(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, scale: float, output_scale: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and for the derivatives a and the log-sum-exp of s, (B, H, N) in the op dtype.

    These two have shape (0,) without `keep`; so has a where it is y.
    """
    ys, attended, lses = [], [], []
    for rows, q_, k_, v_ in _blocks(q, k, v):
        s = scale * (q_ @ k_.mT)
        lse = torch.logsumexp(s, dim=-1)
        a = torch.exp(s - lse[..., None]) @ v_
        ys.append(output_scale * (a if residual is None else a + residual[rows].to(a.dtype)))
        attended.append(a)
        lses.append(lse)
    return _joined(ys, q, q.shape[-1:]).to(q.dtype), *_kept(attended, lses, q, residual, output_scale, keep)


def attention_bwd(
    grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, attended: Tensor, lse: Tensor, scale: float, output_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. `attended` is a, lse the log-sum-exp of s."""
    dtype = op_dtype(q)
    grads_q, grads_k, grads_v = [], [], []
    of_sample: tuple[Tensor, Tensor] | None = None
    for rows, q_, k_, v_ in _blocks(q, k, v):
        g = output_scale * grad_y[rows].to(dtype)
        p = torch.exp(scale * (q_ @ k_.mT) - lse[rows][..., None])
        delta = (g * attended[rows].to(dtype)).sum(-1, keepdim=True)
        ds = p * (g @ v_.mT - delta)
        grads_q.append(scale * (ds @ k_))
        grad_k, grad_v = scale * (ds.mT @ q_), p.mT @ g
        of_sample = (grad_k, grad_v) if of_sample is None else (of_sample[0] + grad_k, of_sample[1] + grad_v)
        if rows[2].stop >= q.shape[2]:
            grads_k.append(of_sample[0])
            grads_v.append(of_sample[1])
            of_sample = None
    grad_q = _joined(grads_q, q, q.shape[-1:]).to(q.dtype)
    if not grads_k:  # no samples, or no queries
        return grad_q, torch.zeros_like(k), torch.zeros_like(v)
    return grad_q, torch.cat(grads_k).to(k.dtype), torch.cat(grads_v).to(v.dtype)


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
    """y, its tangent along the given tangents (None is zero), and a and the log-sum-exp as `attention_fwd` has them."""
    dtype = op_dtype(q)
    ys, tangents, attended, lses = [], [], [], []
    for rows, q_, k_, v_ in _blocks(q, k, v):
        sample = rows[:1]
        s = scale * (q_ @ k_.mT)
        lse = torch.logsumexp(s, dim=-1)
        p = torch.exp(s - lse[..., None])
        a = p @ v_
        a_t = torch.zeros_like(a) if v_t is None else p @ v_t[sample].to(dtype)
        if q_t is not None or k_t is not None:
            s_t = torch.zeros_like(s) if q_t is None else q_t[rows].to(dtype) @ k_.mT
            if k_t is not None:
                s_t = s_t + q_ @ k_t[sample].to(dtype).mT
            s_t = scale * s_t
            a_t = a_t + (p * (s_t - (p * s_t).sum(-1, keepdim=True))) @ v_
        ys.append(output_scale * (a if residual is None else a + residual[rows].to(dtype)))
        tangents.append(output_scale * (a_t if residual_t is None else a_t + residual_t[rows].to(dtype)))
        attended.append(a)
        lses.append(lse)
    y, y_t = (_joined(parts, q, q.shape[-1:]).to(q.dtype) for parts in (ys, tangents))
    return y, y_t, *_kept(attended, lses, q, residual, output_scale, keep)


def op_dtype(q: Tensor) -> torch.dtype:
    """The dtype of everything between load and store."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def empty_like_q(q: Tensor) -> Tensor:
    """Uninitialized, as results are laid out: dense in the order of q, but with the channels contiguous."""
    result = torch.empty_like(q)
    return result if result.stride(-1) == 1 else q.new_empty(q.shape)


def keeps_attended(residual: Tensor | None, output_scale: float) -> bool:
    """Whether a is another tensor than y."""
    return residual is not None or output_scale != 1


def _kept(
    attended: list[Tensor], lses: list[Tensor], q: Tensor, residual: Tensor | None, output_scale: float, keep: bool
) -> tuple[Tensor, Tensor]:
    apart = keep and keeps_attended(residual, output_scale)
    a = _joined(attended, q, q.shape[-1:]).to(q.dtype) if apart else q.new_empty(0)
    return a, _joined(lses, q, ()) if keep else q.new_empty(0, dtype=op_dtype(q))


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor, Tensor, Tensor]]:
    """Blocks of queries: their place, and q, k and v for them in the op dtype. A block lies within whole samples,
    or within one, whose blocks come one after the other.
    """
    dtype = op_dtype(q)
    b, h, n, _ = q.shape
    row = h * k.shape[2] * (8 if dtype == torch.float64 else 4)
    samples = max(1, SCORES // max(row * n, 1))
    queries = n if samples > 1 else max(1, min(n, SCORES // max(row, 1)))
    for first in range(0, b, samples):
        sample = slice(first, min(first + samples, b))
        k_, v_ = k[sample].to(dtype), v[sample].to(dtype)
        for start in range(0, n, max(queries, 1)):
            rows = (sample, slice(None), slice(start, min(start + queries, n)))
            yield rows, q[rows].to(dtype), k_, v_


def _joined(parts: list[Tensor], q: Tensor, tail: tuple[int, ...] | torch.Size) -> Tensor:
    """The results of `_blocks` put together: (B, H, N, *tail)."""
    b, h, n = q.shape[:3]
    if not parts:
        return q.new_zeros((b, h, n, *tail), dtype=op_dtype(q))
    if len(parts) > 1 and parts[0].shape[2] == n:
        return torch.cat(parts)
    if len(parts) > 1:
        per_sample = len(parts) // b
        return torch.cat([torch.cat(parts[i : i + per_sample], 2) for i in range(0, len(parts), per_sample)])
    return parts[0]

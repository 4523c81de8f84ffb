"""Softmax attention in value, reverse and forward mode, with no matrix of scores in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from fastscore import _backend, _checks
from fastscore.ops._derivatives import directional, needs_function, pullback, spread

_reference = import_module("fastscore.reference.attention")

_OP = "attention"
Optional = Tensor | None
Result = tuple[Optional, ...]


def _op(kind: str) -> Callable[..., Any]:
    return _backend.op(f"{_OP}_{kind}")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    residual: Tensor | None = None,
    output_scale: float = 1.0,
) -> Tensor:
    """output_scale * (softmax(scale q k^T) v + residual), with the softmax over the keys (Vaswani et al. 2017, eq. 1).

    The sum with the residual and its scale are those of the attention blocks of NCSN++ (Song et al. 2021, appendix H).
    A projection that follows a single head goes into v before: the weights of a query sum to 1, so that
    (p v) W + b = p (v W + b).

    Args:
        q: (B, H, N, D), queries: B samples, H heads, N rows of D channels; float32, float64, bfloat16 or float16.
        k, v: (B, H, M, D) with M >= 1, keys and values, like q.
        scale: > 0, of the scores; D ** -0.5 by default.
        residual: (B, H, N, D), like q.
        output_scale: finite.

    All may lie in memory with any strides; with D contiguous q, k and v are read in place, as views of (B, N, H, D) or
    of a packed qkv are. Scores and sums are float32, or float64; the result is rounded once. Products of float32 are
    taken in TF32 on a GPU only where torch.backends.cuda.matmul.allow_tf32 is set.

    Returns:
        Tensor (B, H, N, D) of the dtype of q, in memory (B, N, H, D), so that joining the heads is free.

    Differentiable in all tensors, in reverse and forward mode, any number of times. In forward mode value and tangent
    come from one pass over the keys (Lu & Song 2024, appendix F), and tangents that are not there cost nothing. First
    derivatives keep no (N, M) scores; those above are made of plain PyTorch, and do. Where nothing is to be
    differentiated, torch's own fused attention may run in place of this one's kernels (`_torch_is_better`).

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check(q, k, v, scale, residual, output_scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if _backend.reference_asked(q.device):
        return _reference.attention(q, k, v, scale=scale, residual=residual, output_scale=output_scale)
    arguments = (q, k, v, residual, scale, output_scale)
    if torch.compiler.is_compiling():
        if (
            forward_ad._current_level >= 0
        ):  # the op alone would lose gradients; where dynamo may, it leaves this to eager
            raise NotImplementedError("attention: torch.compile(fullgraph=True) cannot trace forward mode through it")
        # Dynamo takes no Function that defines jvp or vmap.
        if torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in arguments[:4]]):  # noqa: C419
            return _Attention.apply(*arguments)[0]
    elif needs_function(*arguments[:4]):
        duals = _unpacked(arguments[:4])
        if duals is not None:
            y, y_t, *_ = _Pair.apply(*duals, scale, output_scale)
            return forward_ad.make_dual(y, y_t)
        return _TransformableAttention.apply(*arguments)[0]
    if _torch_is_better(q, k, v, residual, output_scale):
        y = F.scaled_dot_product_attention(q, k, v, scale=scale)
        y = y if residual is None else y + residual
        return y if output_scale == 1 else y * output_scale
    return _op("fwd")(*arguments, False)[0]


def _torch_is_better(q: Tensor, k: Tensor, v: Tensor, residual: Optional, output_scale: float) -> bool:
    """Whether "auto" leaves a value that nobody differentiates to torch's fused attention, which must never be its
    unfused one: it would write the scores to memory.

    On CPU: always, but for 16-bit inputs with something added, which would be rounded twice. On a GPU: for 16-bit
    inputs of head dimensions that FlashAttention-2 and cuDNN take, where nothing is added in the same pass.
    """
    if _backend.forced is not None or not (q.stride(-1) == k.stride(-1) == v.stride(-1) == 1):
        return False
    alone = residual is None and output_scale == 1
    if q.device.type == "cpu":
        return alone or q.dtype in (torch.float32, torch.float64)
    size = q.shape[-1]
    return alone and q.dtype in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= 256


def _kept(
    q: Tensor, k: Tensor, v: Tensor, residual: Optional, scale: float, output_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and what its derivatives need: softmax(...) v where it is not y, and the log-sum-exp."""
    if not (_torch_can_derive(q) and q.numel() and _torch_is_better(q, k, v, residual, output_scale)):
        return _op("fwd")(q, k, v, residual, scale, output_scale, True)
    attended, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    if not _reference.keeps_attended(residual, output_scale):
        return attended, q.new_empty(0), lse
    y = attended if residual is None else attended + residual
    return y if output_scale == 1 else y * output_scale, attended, lse


def _pulled_back(
    grad_y: Tensor, saved: Sequence[Tensor], scale: float, output_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from these three, softmax(...) v and the log-sum-exp."""
    q, k, v, attended, lse = saved
    if not (_torch_can_derive(q) and q.numel() and _torch_is_better(q, k, v, None, output_scale)):
        return _op("bwd")(grad_y, q, k, v, attended, lse, scale, output_scale)
    g = grad_y if output_scale == 1 else grad_y * output_scale
    g = g if g.stride(-1) == 1 else g.contiguous()
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_q, grad_k, grad_v = backward(g, q, k, v, attended, lse, 0.0, False, scale=scale)
    return grad_q, grad_k, grad_v


def _torch_can_derive(q: Tensor) -> bool:
    """Whether torch has a fused gradient that loses no digits: its 16-bit one rounds the weights."""
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def _check(q: Tensor, k: Tensor, v: Tensor, scale: object, residual: Optional, output_scale: object) -> None:
    _checks.is_state(_OP, "q", q)
    if q.dim() != 4 or q.shape[1] == 0 or q.shape[3] == 0:
        _checks.wrong_value(_OP, "q", "have shape (B, H, N, D), H and D at least 1", f"shape {tuple(q.shape)}")
    if not isinstance(k, Tensor):
        _checks.wrong_type(_OP, "k", "be a tensor", type(k).__name__)
    b, h, _, d = q.shape
    if k.dim() != 4 or (k.shape[0], k.shape[1], k.shape[3]) != (b, h, d) or k.shape[2] == 0:
        _checks.wrong_value(_OP, "k", f"have shape (B, H, M, D) = ({b}, {h}, M, {d}), M at least 1", tuple(k.shape))
    if k.dtype != q.dtype:
        _checks.wrong_type(_OP, "k", f"have the dtype of q, {q.dtype}", k.dtype)
    _checks.same_device(_OP, "k", k, q, "q")
    _checks.matches(_OP, "v", v, k, "k")
    if residual is not None:
        _checks.matches(_OP, "residual", residual, q, "q")
    if scale is not None:
        _number("scale", scale)
        if scale <= 0:  # type: ignore[operator]
            _checks.wrong_value(_OP, "scale", "be above 0", scale)
    _number("output_scale", output_scale)


def _number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        _checks.wrong_type(_OP, name, "be a float", type(value).__name__)
    if not math.isfinite(value):
        _checks.wrong_value(_OP, name, "be finite", value)


def _unpacked(tensors: Sequence[Optional]) -> list[Optional] | None:
    """The tensors and then their tangents, where the innermost transform is forward mode and some have one.

    Not where reverse mode may follow at the same level: the gradients would have no tangents.
    """
    if forward_ad._current_level < 0:
        return None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return None
    functorch = torch._C._functorch
    innermost = functorch.peek_interpreter_stack()
    if innermost is not None and innermost.key() != functorch.TransformType.Jvp:
        return None
    duals = [(None, None) if t is None else tuple(forward_ad.unpack_dual(t)) for t in tensors]
    tangents = [tangent for _, tangent in duals if tangent is not None]
    # the vmap that gradcheck and torch.autograd.functional use cannot make dual numbers of what it maps over
    if not tangents or any(functorch.is_legacy_batchedtensor(tangent) for tangent in tangents):
        return None
    return [value for value, _ in duals] + [tangent for _, tangent in duals]


class _Attention(torch.autograd.Function):
    """Reverse mode. Gives y, softmax(...) v and the log-sum-exp; the last two are for the derivatives alone."""

    @staticmethod
    def forward(  # spelled out: dynamo counts the parameters
        q: Tensor, k: Tensor, v: Tensor, residual: Optional, scale: float, output_scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _kept(q, k, v, residual, scale, output_scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v, residual, ctx.scale, ctx.output_scale = inputs
        y, attended, lse = output
        ctx.mark_non_differentiable(attended, lse)
        apart = _reference.keeps_attended(residual, ctx.output_scale)
        ctx.save_for_backward(q, k, v, attended if apart else y, lse)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Optional) -> Result:
        needed = ctx.needs_input_grad
        gradients: Result = (None, None, None)
        if needed[0] or needed[1] or needed[2]:
            gradients = _pulled_back(grad_y, ctx.saved_tensors, ctx.scale, ctx.output_scale)
        return *_where_needed(gradients, needed), _scaled(grad_y, ctx.output_scale, needed[3]), None, None


class _TransformableAttention(_Attention):
    """The same with forward mode, vmap and higher derivatives."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _kept(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _Attention.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Optional) -> Result:
        needed = ctx.needs_input_grad
        gradients: Result = (None, None, None)
        if any(needed[:3]):
            gradients = _gradients(grad_y, ctx.saved_tensors, ctx.scale, ctx.output_scale)
        return *_where_needed(gradients, needed), _scaled(grad_y, ctx.output_scale, needed[3]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Result:
        return _Pair.apply(*ctx.saved_tensors, *tangents[:4], ctx.scale, ctx.output_scale)[1], None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        tensors = _folded(info.batch_size, in_dims[:4], args[:4])
        return _unfolded(info.batch_size, _TransformableAttention.apply(*tensors, *args[4:]))


class _Vjp(torch.autograd.Function):
    """The gradients: (grad_y, q, k, v, softmax(...) v, lse, settings) -> grad_q, grad_k, grad_v."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _pulled_back(args[0], args[1:6], *args[6:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.settings = inputs[6:]
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Result:
        return *pullback(_plain_vjp(*ctx.settings), *ctx.saved_tensors)(grads), *[None] * 4

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Result:
        return directional(_plain_vjp(*ctx.settings), ctx.saved_tensors, tangents[:4])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _unfolded(info.batch_size, _Vjp.apply(*_folded(info.batch_size, in_dims[:6], args[:6]), *args[6:]))


class _Pair(torch.autograd.Function):
    """Value and tangent: (q, k, v, residual, their tangents, settings) -> y, y_t, softmax(...) v, lse."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _op("jvp")(*args, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.scale, ctx.output_scale = inputs
        y, _, attended, lse = output
        ctx.mark_non_differentiable(attended, lse)
        ctx.set_materialize_grads(False)
        apart = _reference.keeps_attended(tensors[3], ctx.output_scale)
        ctx.save_for_backward(*tensors, attended if apart else y, lse)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_y: Optional, grad_y_t: Optional, *_: Optional) -> Result:
        *tensors, attended, lse = ctx.saved_tensors
        if grad_y_t is None:
            if grad_y is None:
                return (None,) * 10
            # a tangent that is only looked at, as in consistency training
            gradients = _gradients(grad_y, (*tensors[:3], attended, lse), ctx.scale, ctx.output_scale)
            return *gradients, _scaled(grad_y, ctx.output_scale, tensors[3] is not None), *[None] * 6
        grad_y = torch.zeros_like(grad_y_t) if grad_y is None else grad_y
        plain, kept = _plain_pair(tensors, ctx.scale, ctx.output_scale)
        gradients = pullback(plain, *[tensors[i] for i in kept])((grad_y, grad_y_t))
        return *spread(gradients, kept, 8), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Result:
        tensors = ctx.saved_tensors
        plain, kept = _plain_pair(tensors, ctx.scale, ctx.output_scale)
        y, y_t = directional(plain, [tensors[i] for i in kept], [tangents[i] for i in kept])
        return y, y_t, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results, dims = _unfolded(
            info.batch_size, _Pair.apply(*_folded(info.batch_size, in_dims[:8], args[:8]), *args[8:])
        )
        if any(dim is not None for dim in in_dims[:4]):
            return results, dims
        # tangents alone are mapped: the value is one, and whatever follows works on one
        y, y_t, *kept = results
        return (y[0], y_t, *(r if r.dim() == 1 else r[0] for r in kept)), (None, 0, None, None)


def _gradients(
    grad_y: Tensor, saved: Sequence[Tensor], scale: float, output_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of q, k and v, by a Function where somebody differentiates them."""
    if needs_function(grad_y, *saved):
        return _Vjp.apply(grad_y, *saved, scale, output_scale)
    return _pulled_back(grad_y, saved, scale, output_scale)


def _where_needed(gradients: Sequence[Optional], needed: Sequence[bool]) -> list[Optional]:
    # dynamo of torch 2.9 inlines no generator, and takes any `strict=` for True
    return [g if need else None for g, need in zip(gradients, needed)]  # noqa: B905


def _scaled(grad_y: Tensor, output_scale: float, needed: bool) -> Optional:
    """The gradient of the residual."""
    if not needed:
        return None
    return grad_y if output_scale == 1 else grad_y * output_scale


def _folded(count: int, dims: Sequence[int | None], tensors: Sequence[Optional]) -> list[Optional]:
    """The dimension that vmap maps over, of `count`, folded into the samples: (count * B, ...) of each."""
    folded: list[Optional] = []
    for tensor, dim in zip(tensors, dims, strict=True):
        if tensor is None:
            folded.append(None)
        else:
            mapped = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            folded.append(mapped.flatten(0, 1))
    return folded


def _unfolded(count: int, results: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The opposite, and where the dimension is: nowhere in what was not kept, of shape (0,)."""
    return (
        tuple(r if r.dim() == 1 else r.unflatten(0, (count, r.shape[0] // count)) for r in results),
        tuple(None if r.dim() == 1 else 0 for r in results),
    )


def _plain_vjp(scale: float, output_scale: float) -> Callable[..., tuple[Tensor, ...]]:
    """`_Vjp` in plain PyTorch, as a function of (grad_y, q, k, v)."""

    def plain(grad_y: Tensor, *qkv: Tensor) -> tuple[Tensor, ...]:
        exact = (t.to(_reference.op_dtype(grad_y)) for t in qkv)
        attended, _, lse = _reference.attention_fwd(*exact, None, scale, 1.0, True)
        return _reference.attention_bwd(grad_y, *qkv, attended, lse, scale, output_scale)

    return plain


def _plain_pair(tensors: Sequence[Optional], scale: float, output_scale: float) -> tuple[Any, list[int]]:
    """`_Pair` in plain PyTorch, as a function of those of its tensors that are there, and their places."""
    kept = [i for i, t in enumerate(tensors) if t is not None]

    def plain(*present: Tensor) -> tuple[Tensor, ...]:
        return _reference.attention_jvp(*spread(present, kept, 8), scale, output_scale, False)[:2]

    return plain, kept

"""GroupNorm, embedding inputs and SiLU in one op: x is read once for the statistics and once to write the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastscore import _backend, _checks
from fastscore.ops._derivatives import directional, needs_function, pullback, spread

_reference = import_module("fastscore.reference.group_norm_silu")

_OP = "group_norm_silu"
_LOW = (torch.float32, torch.bfloat16, torch.float16)
_DOUBLE = (torch.float64,)
Optional = Tensor | None
Result = tuple[Optional, ...]


def _op(kind: str) -> Callable[..., Any]:
    return _backend.op(f"{_OP}_{kind}")


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """silu(GroupNorm(x + add) * (1 + scale) + shift), as the residual blocks of score networks need it.

    GroupNorm is that of Wu & He 2018 (eqs. 1-7). `add` is the time embedding of DDPM (Ho et al. 2020) and NCSN++ (Song
    et al. 2021), `scale` and `shift` are those of ADM (Dhariwal & Nichol 2021, section 3.1). The formula, line by line,
    is in `fastscore/reference/group_norm_silu.py`.

    Args:
        x: (N, C, *spatial) of any rank from 2 up; float32, float64, bfloat16 or float16.
        num_groups: a divisor of C.
        weight, bias: (C,); 1 and 0 where absent.
        add: (N, C), added to each channel before the statistics are taken.
        scale, shift: (N, C), after weight and bias.
        eps: added to the variance, >= 0.
        silu: without it, the norm alone.
        out: like x, on a CPU; dense, contiguous or channels last as x is. The result is written to it, and no large
            memory is allocated. May be x itself. Not where derivatives are recorded: call it under `torch.no_grad()`.

    The parameters may be float32, bfloat16 or float16 whichever of these `x` is (as under autocast); float64 goes with
    float64. Sums and everything between load and store are float32, or float64; the result is rounded once.

    Returns:
        `out`, or a new tensor of the shape and dtype of `x`; channels last (in any rank) where `x` is, else contiguous.
        Neither layout is converted to the other; an `x` that has neither is copied. Bits do not depend on the number
        of threads.

    Differentiable in all tensors, in reverse and forward mode, any number of times: the first derivatives are fused
    kernels, those above are made of plain PyTorch.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
        RuntimeError: `out` shares memory with a parameter, or with `x` in part.
    """
    _check(x, num_groups, weight, bias, add, scale, shift, eps, silu)
    if out is not None:
        return _into(out, x, weight, bias, add, scale, shift, num_groups, eps, silu)
    if _backend.reference_asked(x.device):
        return _reference.group_norm_silu(
            x, num_groups, weight, bias, add=add, scale=scale, shift=shift, eps=eps, silu=silu
        )
    tensors = (x, weight, bias, add, scale, shift)
    if torch.compiler.is_compiling():
        # Dynamo takes no Function that defines jvp or vmap.
        return _GroupNormSiLU.apply(*tensors, num_groups, eps, silu)[0]
    if needs_function(*tensors):
        return _TransformableGroupNormSiLU.apply(*tensors, num_groups, eps, silu)[0]
    return _op("fwd")(*tensors, num_groups, eps, silu)[0]


def _into(out: Tensor, x: Tensor, *rest: Any) -> Tensor:
    _checks.matches(_OP, "out", out, x)
    if x.device.type != "cpu":
        _checks.wrong_value(_OP, "out", "be None for x on a device other than the CPU", f"a tensor on {out.device}")
    if needs_function(out, x, *rest[:5]):
        _checks.wrong_value(_OP, "out", "be None where derivatives are recorded", "a tensor")
    run = _reference.group_norm_silu_into if _backend.reference_asked(x.device) else _op("into")
    run(x, *rest, out)
    return out


def _check(
    x: Tensor,
    num_groups: int,
    weight: Optional,
    bias: Optional,
    add: Optional,
    scale: Optional,
    shift: Optional,
    eps: float,
    silu: bool,
) -> None:
    _checks.is_state(_OP, "x", x)
    if x.dim() < 2:
        _checks.wrong_value(_OP, "x", "have shape (N, C, ...)", f"shape {tuple(x.shape)}")
    if not isinstance(num_groups, int) or isinstance(num_groups, bool):
        _checks.wrong_type(_OP, "num_groups", "be an int", type(num_groups).__name__)
    n, c = x.shape[:2]
    if num_groups < 1 or c % num_groups:
        _checks.wrong_value(_OP, "num_groups", f"be at least 1 and divide the channels of x, {c}", num_groups)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        _checks.wrong_type(_OP, "eps", "be a float", type(eps).__name__)
    if not 0 <= eps < math.inf:
        _checks.wrong_value(_OP, "eps", "be finite and at least 0", eps)
    if not isinstance(silu, bool):
        _checks.wrong_type(_OP, "silu", "be a bool", type(silu).__name__)
    if weight is not None:
        _parameter("weight", weight, x, (c,), "(C,)")
    if bias is not None:
        _parameter("bias", bias, x, (c,), "(C,)")
    if add is not None:
        _parameter("add", add, x, (n, c), "(N, C)")
    if scale is not None:
        _parameter("scale", scale, x, (n, c), "(N, C)")
    if shift is not None:
        _parameter("shift", shift, x, (n, c), "(N, C)")


def _parameter(name: str, value: object, x: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if not isinstance(value, Tensor):
        _checks.wrong_type(_OP, name, "be a tensor", type(value).__name__)
    if value.shape != shape:
        _checks.wrong_value(_OP, name, f"have shape {meaning} = {shape}", tuple(value.shape))
    if value.dtype not in (_DOUBLE if x.dtype is torch.float64 else _LOW):
        accepted = "float64" if x.dtype is torch.float64 else "float32, bfloat16 or float16"
        _checks.wrong_type(_OP, name, f"be {accepted} for {x.dtype} x", value.dtype)
    if value.device != x.device:
        _checks.same_device(_OP, name, value, x)


# The Functions below take x, five parameters (weight, bias, add, scale, shift; each may be None), and further tensors
# and settings. Inside, weight and bias may be (N, C) too: so vmap folds its dimension into the batch. What dynamo does
# not see takes *args: torch binds arguments to the signature at every call, which costs some microseconds a name.


class _GroupNormSiLU(torch.autograd.Function):
    """Reverse mode. Gives y, mean and rstd; the statistics are for the derivatives alone."""

    @staticmethod
    def forward(  # spelled out: dynamo counts the parameters
        x: Tensor,
        weight: Optional,
        bias: Optional,
        add: Optional,
        scale: Optional,
        shift: Optional,
        num_groups: int,
        eps: float,
        silu: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _op("fwd")(x, weight, bias, add, scale, shift, num_groups, eps, silu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.num_groups, ctx.eps, ctx.silu = inputs
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(*tensors, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Result:
        grad_y = grads[0]
        gradients = _op("bwd")(grad_y, *ctx.saved_tensors, ctx.num_groups, ctx.silu)
        return *_where_needed(gradients, ctx.needs_input_grad), None, None, None


class _TransformableGroupNormSiLU(_GroupNormSiLU):
    """The same with forward mode, vmap and higher derivatives."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _op("fwd")(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _GroupNormSiLU.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:6], *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Result:
        grad_y = grads[0]
        tensors = ctx.saved_tensors
        if needs_function(grad_y, *tensors):
            gradients = _Vjp.apply(grad_y, *tensors, ctx.num_groups, ctx.eps, ctx.silu)
        else:
            gradients = _op("bwd")(grad_y, *tensors, ctx.num_groups, ctx.silu)
        return *_where_needed(gradients, ctx.needs_input_grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Result:
        return _Jvp.apply(*ctx.saved_tensors, *tangents[:6], ctx.num_groups, ctx.eps, ctx.silu), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        fold = _Fold(info.batch_size, args[0], in_dims[0])
        tensors = [fold(value, dim) for value, dim in zip(args[:6], in_dims[:6], strict=True)]
        outputs = _TransformableGroupNormSiLU.apply(*tensors, *args[6:])
        return tuple(fold.undo(out) for out in outputs), (0, 0, 0)


class _Vjp(torch.autograd.Function):
    """The gradients: (grad_y, x, parameters, mean, rstd, settings) -> grad_x, grad_weight, ..., grad_shift."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *tensors, num_groups, _, silu = args
        return _op("bwd")(*tensors, num_groups, silu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.settings = inputs[9:]
        ctx.mark_non_differentiable(*(g for g, p in zip(output, inputs[1:7], strict=True) if p is None))
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Result:
        plain, present, kept = _plain_vjp(ctx.saved_tensors, *ctx.settings)
        gradients = pullback(plain, *present)(tuple(grads[k - 1] for k in kept[1:]))
        return *spread(gradients, kept, 7), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Result:
        plain, present, kept = _plain_vjp(ctx.saved_tensors, *ctx.settings)
        outputs = directional(plain, present, [tangents[k] for k in kept])
        return spread(outputs, [k - 1 for k in kept[1:]], 6)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        fold = _Fold(info.batch_size, args[1], in_dims[1])
        # Shared parameters get a row per sample, so that their gradients come per sample too.
        tensors = [fold(value, dim, rows=True) for value, dim in zip(args[:9], in_dims[:9], strict=True)]
        gradients = [
            fold.undo(g) if g.numel() or p is not None else g
            for g, p in zip(_Vjp.apply(*tensors, *args[9:]), args[1:7], strict=True)
        ]
        for k, dim in enumerate(in_dims[1:7]):
            parameter = args[1 + k]
            if k > 0 and parameter is not None and parameter.dim() - (dim is not None) == 1:
                gradients[k] = gradients[k].sum(1)
        return tuple(gradients), tuple(None if p is None else 0 for p in args[1:7])


class _Jvp(torch.autograd.Function):
    """The tangent: (x, parameters, mean, rstd, tangents of x and of the parameters, settings) -> y_t."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        *tensors, num_groups, _, silu = args
        return _op("jvp")(*tensors, num_groups, silu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.settings = inputs[14:]
        ctx.save_for_backward(*inputs[:6], *inputs[8:14])
        ctx.save_for_forward(*inputs[:6], *inputs[8:14])

    @staticmethod
    def backward(ctx: Any, *grads: Optional) -> Result:
        plain, present, kept = _plain_jvp(ctx.saved_tensors, *ctx.settings)
        gradients = spread(pullback(plain, *present)((grads[0],)), kept, 12)
        return *gradients[:6], None, None, *gradients[6:], None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Optional) -> Tensor:
        plain, present, kept = _plain_jvp(ctx.saved_tensors, *ctx.settings)
        given = (*tangents[:6], *tangents[8:14])
        return directional(plain, present, [given[k] for k in kept])[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        fold = _Fold(info.batch_size, args[0], in_dims[0])
        tensors = [fold(value, dim) for value, dim in zip(args[:14], in_dims[:14], strict=True)]
        return fold.undo(_Jvp.apply(*tensors, *args[14:])), 0


class _Fold:
    """Folds the dimension that vmap maps over, of `count`, into the batch of x and of everything that has rows."""

    def __init__(self, count: int, x: Tensor, dim: int | None):
        self.count = count
        self.batch = x.shape[0] if dim is None else x.movedim(dim, 0).shape[1]

    def __call__(self, value: Optional, dim: int | None, rows: bool = False) -> Optional:
        """(N, ...) -> (count * N, ...); (C,) -> (count * N, C), or (C,) where it is not mapped unless `rows` asks."""
        if value is None:
            return None
        if dim is None:
            if value.dim() == 1 and not rows:
                return value
            if value.dim() > 2:
                return torch.cat([value] * self.count)  # in the memory format of one
            value = value.expand(self.count, *value.shape)
        else:
            value = value.movedim(dim, 0)
        if value.dim() == 2:
            value = value.unsqueeze(1).expand(-1, self.batch, -1)
        return value.flatten(0, 1)

    def undo(self, value: Tensor) -> Tensor:
        return value.unflatten(0, (self.count, self.batch))


def _where_needed(gradients: tuple[Tensor, ...], needed: tuple[bool, ...]) -> list[Optional]:
    # dynamo of torch 2.9 inlines no generator, and takes any `strict=` for True
    return [g if need else None for g, need in zip(gradients, needed)]  # noqa: B905


def _plain_vjp(tensors: Result, num_groups: int, eps: float, silu: bool) -> tuple[Any, list[Tensor], list[int]]:
    """`_Vjp` in plain PyTorch, as a function of those of (grad_y, x, parameters) that are there, and their places."""
    kept = [k for k, t in enumerate(tensors) if t is not None]

    def plain(*present: Tensor) -> tuple[Tensor, ...]:
        grad_y, *inputs = spread(present, kept, 7)
        _, mean, rstd = _reference.group_norm_silu_fwd(*inputs, num_groups, eps, silu)
        gradients = _reference.group_norm_silu_bwd(grad_y, *inputs, mean, rstd, num_groups, silu)
        return tuple(gradients[k - 1] for k in kept[1:])

    return plain, [t for t in tensors if t is not None], kept


def _plain_jvp(tensors: Result, num_groups: int, eps: float, silu: bool) -> tuple[Any, list[Tensor], list[int]]:
    """`_Jvp` in plain PyTorch, as a function of those of (x, parameters, tangents) that are there, and their places."""
    kept = [k for k, t in enumerate(tensors) if t is not None]

    def plain(*present: Tensor) -> tuple[Tensor, ...]:
        every = spread(present, kept, 12)
        _, mean, rstd = _reference.group_norm_silu_fwd(*every[:6], num_groups, eps, silu)
        return (_reference.group_norm_silu_jvp(*every[:6], mean, rstd, *every[6:], num_groups, silu),)

    return plain, [t for t in tensors if t is not None], kept

"""One step of a sampler that clamps, or keeps, a prediction made of the network output: read once, written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import copied, needs_function

MAX_HISTORY = 3
_COLUMNS = tuple(
    f"[{', '.join(['p', 'q', 'c', 'a', *(f'b_{k}' for k in range(count + 1)), 's', 'e'])}]"
    for count in range(MAX_HISTORY + 1)
)


def solver_step(
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    *,
    exponent: Tensor | None = None,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes m = clamp(p x + q h, -c, c) and a x + b_0 m + sum_k b_k m_k + w z in one pass over the data.

    `linear_step` for samplers that turn the network output h into something else first, such as a clean image m, to
    clamp it (DDPM, Ho et al. 2020) or to keep it for later steps (multistep DPM-Solver++, Lu et al. 2022). The weight
    of the noise is w = s, or w = s exp(e v) for every element, where `exponent` v is given: a learned range of
    variances (improved DDPM, Nichol and Dhariwal 2021, eq. 15) as a standard deviation.

    Args:
        x: (B, ...), float32, float64, bfloat16 or float16; any memory format.
        h: the network output, of the shape, dtype and device of `x`. It may be some of the channels of a larger
            contiguous tensor, as `exponent` may, without being copied.
        history: m_1 ... m_K, K <= 3 tensors like `x`: the m of earlier steps, newest first.
        coefficients: [p, q, c, a, b_0, b_1 ... b_K, s, e], shape (K + 7,) or one row per sample (B, K + 7); float32, or
            float64 where `x` is float64; on the device of `x`. c >= 0; infinity clamps nothing. e is not used without
            `exponent`.
        exponent: v, of the shape and dtype of `x`.
        noise: z, of the shape and dtype of `x`.
        rng: int64 [2] = (seed, draw), and
        samples: int64 [B], the index of the sample in each row: z is drawn as `fastscore.noise` specifies, the same
            numbers that `linear_step` draws. Without `noise`, `rng` and `samples` there is no noise, and s, e and v are
            not used.

    Returns:
        The new state and m, each of the shape and dtype of `x`; with its strides where `x` is dense, else contiguous.
        Sums are in the dtype of `coefficients`, rounded once; the sum takes m before it is rounded. NaN is not clamped.
        Noise of weight s = 0 is not looked at, nor is v then.

    Differentiable in `x`, `h`, `history`, `coefficients`, `exponent` and `noise`, in reverse and forward mode, any
    number of times. The derivative of the clamp is 1 inside and at its bounds, and 0 outside.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check("solver_step", x, h, history, coefficients, exponent, noise, rng, samples)
    if _backend.reference_asked(x.device):
        return reference.solver_step(
            x, h, history, coefficients, exponent=exponent, noise=noise, rng=rng, samples=samples
        )
    if needs_function(x, h, coefficients, exponent, noise, *history):
        if not torch.compiler.is_compiling():
            return _TransformableSolverStep.apply(x, h, coefficients, exponent, noise, rng, samples, *history)
        # Dynamo refuses a Function that defines jvp or vmap, and every Function inside torch.func.
        if torch._C._are_functorch_transforms_active():
            return reference.solver_step(
                x, h, history, coefficients, exponent=exponent, noise=noise, rng=rng, samples=samples
            )
        return _SolverStep.apply(x, h, coefficients, exponent, noise, rng, samples, *history)
    return _backend.op("solver_step")(x, h, history, coefficients, exponent, noise, rng, samples)


def solver_step_(
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    *,
    exponent: Tensor | None = None,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
    m: Tensor | None = None,
) -> Tensor:
    """`solver_step` in place: overwrites `x` with the same numbers, to the last bit, and returns it.

    `h`, `history`, `exponent` and `noise` may be `x` itself, but not overlap it in part. Where a derivative is taken, a
    copy is made.

    Args:
        m: where the prediction m is kept, if it is: a tensor like `x` that shares no memory with the others.
    """
    _check("solver_step_", x, h, history, coefficients, exponent, noise, rng, samples)
    if m is not None:
        _checks.matches("solver_step_", "m", m, x)
    if _backend.reference_asked(x.device) or needs_function(x, h, coefficients, exponent, noise, *history):
        of = copied(x)
        out, kept = solver_step(
            of(x),
            of(h),
            [of(earlier) for earlier in history],
            coefficients,
            exponent=of(exponent),
            noise=of(noise),
            rng=rng,
            samples=samples,
        )
        if m is not None:
            m.copy_(kept)
        return x.copy_(out)
    _backend.op("solver_step_")(x, h, history, coefficients, exponent, noise, rng, samples, m=m)
    return x


def _check(
    op: str,
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    exponent: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    _checks.is_state(op, "x", x)
    _checks.matches(op, "h", h, x)
    if isinstance(history, Tensor):
        _checks.wrong_type(op, "history", "be a sequence of tensors", "a tensor")
    if len(history) > MAX_HISTORY:
        _checks.wrong_value(op, "history", f"hold at most {MAX_HISTORY} tensors", len(history))
    _checks.match(op, "history", history, x)
    _checks.coefficients(op, coefficients, x, len(history) + 7, _COLUMNS[len(history)])
    if exponent is not None:
        _checks.matches(op, "exponent", exponent, x)
    _checks.noise_source(op, x, noise, rng, samples)


class _Parts(NamedTuple):
    """What the step is made of, in the accumulation dtype; `columns` are the coefficients, each (B or 1, 1, ...)."""

    x: Tensor
    h: Tensor
    history: list[Tensor]
    columns: tuple[Tensor, ...]
    m: Tensor
    inside: Tensor  # whether the clamp leaves an element alone
    side: Tensor  # 1 where it is clamped from above, -1 from below, else 0
    v: Tensor
    growth: Tensor  # exp(e v)
    z: Tensor | None
    noise: Tensor | None  # w z


def _parts(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    exponent: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    *history: Tensor,
) -> _Parts:
    dtype = coefficients.dtype
    columns = _columns(coefficients, x)
    p, q, c, *_, s, e = columns
    z = v = None
    if noise is not None:
        z = noise.to(dtype)
    elif rng is not None:
        z = _backend.op("philox_normal")(rng, samples, x.shape, dtype)
    x, h = x.to(dtype), h.to(dtype)
    raw = p * x + q * h
    above, below = raw > c, raw < -c
    m = torch.where(above, c, torch.where(below, -c, raw))
    v = torch.zeros_like(e) if exponent is None else exponent.to(dtype)
    growth = torch.exp(e * v)
    return _Parts(
        x,
        h,
        [earlier.to(dtype) for earlier in history],
        columns,
        m,
        (raw >= -c) & (raw <= c),
        above.to(dtype) - below.to(dtype),
        v,
        growth,
        z,
        None if z is None else torch.where(s == 0, 0, s * growth * z),
    )


def _columns(coefficients: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return coefficients.reshape(-1, coefficients.shape[-1], *[1] * (x.dim() - 1)).unbind(1)


class _SolverStep(torch.autograd.Function):
    """Reverse mode. The derivatives are written in differentiable operations, so they have derivatives themselves.

    Tensors in the order x, h, coefficients, exponent, noise, rng, samples, *history.
    """

    @staticmethod
    def forward(
        x: Tensor,
        h: Tensor,
        coefficients: Tensor,
        exponent: Tensor | None,
        noise: Tensor | None,
        rng: Tensor | None,
        samples: Tensor | None,
        *history: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _backend.op("solver_step")(x, h, history, coefficients, exponent, noise, rng, samples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        x, _, coefficients = tensors[:3]
        parts = _parts(*tensors)
        p, q, _, a, b, *earlier, s, e = parts.columns
        needs_x, needs_h, needs_coefficients, needs_exponent, needs_noise, _, _, *needs_history = ctx.needs_input_grad
        grad, grad_kept = (g.to(coefficients.dtype) for g in grads)
        grad_m = grad_kept + b * grad
        grad_raw = torch.where(parts.inside, grad_m, 0)
        grad_x = (a * grad + p * grad_raw).to(x.dtype) if needs_x else None
        grad_h = (q * grad_raw).to(x.dtype) if needs_h else None
        grad_history = [
            (weight * grad).to(x.dtype) if need else None for weight, need in zip(earlier, needs_history, strict=True)
        ]
        grad_exponent = grad_noise = grad_coefficients = None
        if needs_exponent:
            along = torch.zeros_like(grad) if parts.noise is None else e * parts.noise * grad
            grad_exponent = along.to(x.dtype)
        if needs_noise:
            grad_noise = (s * parts.growth * grad).to(x.dtype)
        if needs_coefficients:
            factors = [
                *(grad_raw * parts.x, grad_raw * parts.h, grad_m * parts.side, grad * parts.x, grad * parts.m),
                *(grad * m for m in parts.history),
            ]
            if parts.z is None or parts.noise is None:
                factors += [torch.zeros_like(grad)] * 2
            else:
                factors += [grad * parts.growth * parts.z, grad * parts.noise * parts.v]
            kept = tuple(range(0 if coefficients.dim() == 1 else 1, x.dim()))
            grad_coefficients = torch.stack([f.sum(kept) if kept else f for f in factors], -1)
        return (grad_x, grad_h, grad_coefficients, grad_exponent, grad_noise, None, None, *grad_history)


class _TransformableSolverStep(_SolverStep):
    """The same with forward mode and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _SolverStep.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        tensors = ctx.saved_tensors
        x, _, coefficients = tensors[:3]
        parts = _parts(*tensors)
        p, q, _, a, b, *earlier, s, e = parts.columns
        dx, dh, dcoefficients, dv, dz, _, _, *dhistory = (
            torch.zeros((), dtype=coefficients.dtype, device=x.device) if t is None else t.to(coefficients.dtype)
            for t in tangents
        )
        dp, dq, dc, da, db, *dearlier, ds, de = _columns(dcoefficients.expand(coefficients.shape), x)
        dm = torch.where(parts.inside, dp * parts.x + p * dx + dq * parts.h + q * dh, parts.side * dc)
        dout = da * parts.x + a * dx + db * parts.m + b * dm
        for weight, dweight, m, moved in zip(earlier, dearlier, parts.history, dhistory, strict=True):
            dout = dout + dweight * m + weight * moved
        if parts.z is not None and parts.noise is not None:
            growing = de * parts.v + e * dv
            dout = dout + parts.noise * growing + parts.growth * (ds * parts.z + s * dz)
        return dout.to(x.dtype), dm.to(x.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The mapped dimension joins the batch: rows know nothing of each other."""
        if in_dims[5] is not None:
            raise ValueError("solver_step: rng must not be mapped by vmap; map samples instead")
        count = info.batch_size

        def front(i: int) -> Tensor:
            tensor, dim = args[i], in_dims[i]
            return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        def joined(i: int) -> Any:
            return None if args[i] is None else front(i).flatten(0, 1)

        rows = args[2]
        if rows.dim() > 1 or in_dims[2] is not None:
            rows = front(2)
            if rows.dim() == 2:  # mapped, and shared by the samples
                rows = rows.unsqueeze(1).expand(-1, args[0].shape[0 if in_dims[0] != 0 else 1], -1)
            rows = rows.flatten(0, 1)
        out, m = solver_step(
            joined(0),
            joined(1),
            [joined(i) for i in range(7, len(args))],
            rows,
            exponent=joined(3),
            noise=joined(4),
            rng=args[5],
            samples=joined(6),
        )
        return (out.unflatten(0, (count, -1)), m.unflatten(0, (count, -1))), (0, 0)

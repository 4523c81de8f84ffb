"""One step of a fixed-step sampler: x <- a x + sum_k b_k h_k + s z, read once and written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import copied, needs_function

MAX_HISTORY = 6
_COLUMNS = tuple(
    f"[{', '.join(['a', *(f'b_{k + 1}' for k in range(count)), 's'])}]" for count in range(MAX_HISTORY + 1)
)


def linear_step(
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Computes a x + sum_k b_k h_k + s z in one pass over the data; z is given, or drawn in the kernel, or left out.

    Every explicit sampler with a fixed schedule is a sequence of these: Euler-Maruyama and reverse diffusion (Song et
    al. 2021, "Score-based generative modeling through SDEs", eq. 46), DDIM (Song et al. 2021, eq. 12), DPM-Solver++
    (Lu et al. 2022), with `history` the latest network outputs.

    Args:
        x: (B, ...), float32, float64, bfloat16 or float16; any memory format.
        history: K <= 6 tensors of the shape, dtype and device of `x`.
        coefficients: [a, b_1 ... b_K, s], shape (K + 2,) or one row per sample (B, K + 2); float32, or float64 where
            `x` is float64; on the device of `x`.
        noise: z, of the shape and dtype of `x`.
        rng: int64 [2] = (seed, draw), and
        samples: int64 [B], the index of the sample in each row: z is drawn as `fastscore.noise` specifies. A
            row's noise depends on these three numbers alone.
            Without `noise`, `rng` and `samples` there is no noise, and s is not used.

    Returns:
        Tensor of the shape and dtype of `x`; with its strides where `x` is dense, else contiguous. Sums are in the
        dtype of `coefficients`, rounded once. Noise of weight s = 0 is not looked at.

    Differentiable in `x`, `history`, `coefficients` and `noise`, in reverse and forward mode, any number of times.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check("linear_step", x, history, coefficients, noise, rng, samples)
    if _backend.reference_asked(x.device):
        return reference.linear_step(x, history, coefficients, noise=noise, rng=rng, samples=samples)
    if needs_function(x, coefficients, noise, *history):
        if not torch.compiler.is_compiling():
            return _TransformableLinearStep.apply(x, coefficients, noise, rng, samples, *history)
        # Dynamo refuses a Function that defines jvp or vmap, and every Function inside torch.func.
        if torch._C._are_functorch_transforms_active():
            return reference.linear_step(x, history, coefficients, noise=noise, rng=rng, samples=samples)
        return _LinearStep.apply(x, coefficients, noise, rng, samples, *history)
    return _backend.op("linear_step")(x, history, coefficients, noise, rng, samples)


def linear_step_(
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """`linear_step` in place: overwrites `x` with the same numbers, to the last bit, and returns it.

    `history` and `noise` may be `x` itself, but not overlap it in part. Where a derivative is taken, a copy is made.
    """
    _check("linear_step_", x, history, coefficients, noise, rng, samples)
    asked = _backend.reference_asked(x.device)
    if asked or needs_function(x, coefficients, noise, *history):
        of = copied(x)
        past = [of(h) for h in history]
        return x.copy_(linear_step(of(x), past, coefficients, noise=of(noise), rng=rng, samples=samples))
    _backend.op("linear_step_")(x, history, coefficients, noise, rng, samples)
    return x


def _check(
    op: str,
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    _checks.is_state(op, "x", x)
    if isinstance(history, Tensor):
        _checks.wrong_type(op, "history", "be a sequence of tensors", "a tensor")
    if len(history) > MAX_HISTORY:
        _checks.wrong_value(op, "history", f"hold at most {MAX_HISTORY} tensors", len(history))
    _checks.match(op, "history", history, x)
    _checks.coefficients(op, coefficients, x, len(history) + 2, _COLUMNS[len(history)])
    _checks.noise_source(op, x, noise, rng, samples)


def _columns(coefficients: Tensor, *which: int) -> Tensor:
    """The coefficients `which` of every row."""
    return torch.stack([coefficients[..., k] for k in which], -1)


def _scaled(coefficients: Tensor, k: int, g: Tensor) -> Tensor:
    """Coefficient k of each row times g: a linear_step itself, so derivatives of any order come by themselves."""
    column = coefficients[..., k]
    # autograd.grad(is_grads_batched=True) knows torch's own ops only.
    if not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(g):
        return (column.reshape(-1, *[1] * (g.dim() - 1)) * g).to(g.dtype)
    return linear_step(g, (), torch.stack((column, torch.zeros_like(column)), -1))


def _weight_gradient(g: Tensor, factor: Tensor, shared: bool) -> Tensor:
    """Sum of g * factor over each sample, () or (B,), in the accumulation dtype."""
    dtype = _checks.accumulation_dtype(g.dtype)
    product = g.to(dtype) * factor.to(dtype)
    kept = range(0 if shared else 1, g.dim())
    return product.sum(tuple(kept)) if kept else product


class _LinearStep(torch.autograd.Function):
    """Reverse mode. Tensors in the order x, coefficients, noise, rng, samples, *history."""

    @staticmethod
    def forward(
        x: Tensor,
        coefficients: Tensor,
        noise: Tensor | None,
        rng: Tensor | None,
        samples: Tensor | None,
        *history: Tensor,
    ) -> Tensor:
        return _backend.op("linear_step")(x, history, coefficients, noise, rng, samples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, coefficients, noise, rng, samples, *history = inputs
        ctx.history_count = len(history)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(coefficients, x, noise, rng, samples, *history)
        else:
            ctx.save_for_backward(coefficients)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        coefficients, *rest = ctx.saved_tensors
        needs_x, needs_coefficients, needs_noise, _, _, *needs_history = ctx.needs_input_grad
        last = ctx.history_count + 1
        grad_x = _scaled(coefficients, 0, g) if needs_x else None
        grad_history = [_scaled(coefficients, k + 1, g) if need else None for k, need in enumerate(needs_history)]
        grad_noise = _scaled(coefficients, last, g) if needs_noise else None
        grad_coefficients = None
        if needs_coefficients:
            x, noise, rng, samples, *history = rest
            z = noise if rng is None else _drawn(x, rng, samples)
            factors = [x, *history] + ([z] if z is not None else [])
            shared = coefficients.dim() == 1
            sums = [_weight_gradient(g, factor, shared) for factor in factors]
            if z is None:
                sums.append(torch.zeros_like(sums[0]))
            grad_coefficients = torch.stack(sums, -1)
        return (grad_x, grad_coefficients, grad_noise, None, None, *grad_history)


class _TransformableLinearStep(_LinearStep):
    """The same with forward mode and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _LinearStep.setup_context(ctx, inputs, output)
        x, coefficients, noise, rng, samples, *history = inputs
        ctx.save_for_forward(x, coefficients, noise, rng, samples, *history)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, coefficients, noise, rng, samples, *history = ctx.saved_tensors
        dx, dcoefficients, dnoise, _, _, *dhistory = tangents
        present = [k for k, dh in enumerate(dhistory) if dh is not None]
        parts = []
        if dx is not None or dnoise is not None or present:
            weights = _columns(coefficients, 0, *(k + 1 for k in present), len(history) + 1)
            moved = [dh for dh in dhistory if dh is not None]
            parts.append(linear_step(torch.zeros_like(x) if dx is None else dx, moved, weights, noise=dnoise))
        if dcoefficients is not None:
            parts.append(linear_step(x, history, dcoefficients, noise=noise, rng=rng, samples=samples))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """The mapped dimension joins the batch: rows know nothing of each other."""
        x, coefficients, noise, rng, samples, *history = args
        if in_dims[3] is not None:
            raise ValueError("linear_step: rng must not be mapped by vmap; map samples instead")
        count = info.batch_size

        def front(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

        def joined(tensor: Tensor, dim: int | None) -> Tensor:
            return front(tensor, dim).flatten(0, 1)

        def joined_if_there(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            return None if tensor is None else joined(tensor, dim)

        state = front(x, in_dims[0])
        rows = coefficients
        if coefficients.dim() > 1 or in_dims[1] is not None:
            rows = front(coefficients, in_dims[1])
            if rows.dim() == 2:  # mapped, and shared by the samples
                rows = rows.unsqueeze(1).expand(-1, state.shape[1], -1)
            rows = rows.flatten(0, 1)
        out = linear_step(
            state.flatten(0, 1),
            [joined(h, dim) for h, dim in zip(history, in_dims[5:], strict=True)],
            rows,
            noise=joined_if_there(noise, in_dims[2]),
            rng=rng,
            samples=joined_if_there(samples, in_dims[4]),
        )
        return out.unflatten(0, (count, -1)), 0


def _drawn(x: Tensor, rng: Tensor, samples: Tensor) -> Tensor:
    """The noise that the kernel drew, in the accumulation dtype."""
    zeros = torch.zeros_like(x, dtype=_checks.accumulation_dtype(x.dtype))
    return linear_step(zeros, (), zeros.new_tensor([0.0, 1.0]), rng=rng, samples=samples)

"""One step of the Langevin corrector, whose step size comes from two norms; its noise is never stored."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import copied, needs_function


def langevin_step(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
    per_sample: bool = False,
) -> Tensor:
    """Langevin step x + step g + sqrt(2 step) z, where g = p x + q h and step = tau (|z| / |g|)^2.

    The corrector of Song et al. 2021, "Score-based generative modeling through SDEs", algorithms 4 and 5: there g is
    the score and tau = 2 alpha snr^2. p and q make the score of what the network predicts. Two passes: the first sums
    up the norms, the second writes; drawn noise is drawn in both and never stored.

    Args:
        x: (B, ...), float32, float64, bfloat16 or float16; any memory format.
        h: the network output, of the shape, dtype and device of `x`.
        coefficients: [p, q, tau], shape (3,) or one row per sample (B, 3); float32, or float64 where `x` is float64; on
            the device of `x`. tau >= 0.
        noise: z, of the shape and dtype of `x`; or else
        rng: int64 [2] = (seed, draw), and
        samples: int64 [B], the index of the sample in each row: z is drawn as `fastscore.noise` specifies.
        per_sample: False: |z| and |g| are the means over the batch of the L2 norms of the samples, as published. True:
            each sample has its own, so that it does not depend on its batchmates, to the last bit.

    Returns:
        Tensor of the shape and dtype of `x`; with its strides where `x` is dense, else contiguous. Where |g| = 0 the
        step is zero.

    Differentiable in `x`, `h`, `coefficients` and `noise`, through the norms, in reverse and forward mode.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check("langevin_step", x, h, coefficients, noise, rng, samples, per_sample)
    if _backend.reference_asked(x.device):
        return reference.langevin_step(x, h, coefficients, noise=noise, rng=rng, samples=samples, per_sample=per_sample)
    if needs_function(x, h, coefficients, noise):
        if not torch.compiler.is_compiling():
            return _TransformableLangevinStep.apply(x, h, coefficients, noise, rng, samples, per_sample)
        # Dynamo refuses a Function that defines jvp or vmap, and any Function inside torch.func.
        if torch._C._are_functorch_transforms_active():
            return reference.langevin_step(
                x, h, coefficients, noise=noise, rng=rng, samples=samples, per_sample=per_sample
            )
        return _LangevinStep.apply(x, h, coefficients, noise, rng, samples, per_sample)
    return _backend.op("langevin_step")(x, h, coefficients, noise, rng, samples, per_sample)


def langevin_step_(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
    per_sample: bool = False,
) -> Tensor:
    """`langevin_step` in place: overwrites `x` with the same numbers, to the last bit, and returns it.

    `h` and `noise` may be `x` itself, but not overlap it in part. Where a derivative is taken, a copy is made.
    """
    _check("langevin_step_", x, h, coefficients, noise, rng, samples, per_sample)
    if _backend.reference_asked(x.device) or needs_function(x, h, coefficients, noise):
        of = copied(x)
        out = langevin_step(
            of(x), of(h), coefficients, noise=of(noise), rng=rng, samples=samples, per_sample=per_sample
        )
        return x.copy_(out)
    _backend.op("langevin_step_")(x, h, coefficients, noise, rng, samples, per_sample)
    return x


def _check(
    op: str,
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    per_sample: bool,
) -> None:
    _checks.is_state(op, "x", x)
    _checks.matches(op, "h", h, x)
    _checks.coefficients(op, coefficients, x, 3, "[p, q, tau]")
    if noise is None and rng is None and samples is None:
        _checks.wrong_value(op, "noise", "be given, or rng and samples", None)
    _checks.noise_source(op, x, noise, rng, samples)
    if not isinstance(per_sample, bool):
        _checks.wrong_type(op, "per_sample", "be True or False", repr(per_sample))


class _Parts(NamedTuple):
    """What the step is made of, in the accumulation dtype; scalars per row are (B or 1, 1, ...)."""

    x: Tensor
    h: Tensor
    g: Tensor
    z: Tensor
    p: Tensor
    q: Tensor
    ratio: Tensor  # |z| / |g|
    step: Tensor
    width: Tensor  # sqrt(2 step)
    root: Tensor  # sqrt(2 tau)
    tau: Tensor
    norm_z: Tensor  # of each sample, (B, 1, ...)
    norm_g: Tensor
    mean_z: Tensor  # those that the step uses: the same, or their means (1, 1, ...)
    mean_g: Tensor


def _parts(
    x: Tensor,
    h: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
    per_sample: bool,
) -> _Parts:
    dtype = coefficients.dtype
    p, q, tau = coefficients.reshape(-1, 3, *[1] * (x.dim() - 1)).unbind(1)
    z = _backend.op("philox_normal")(rng, samples, x.shape, dtype) if noise is None else noise.to(dtype)
    x, h = x.to(dtype), h.to(dtype)
    g = p * x + q * h
    norm_z, norm_g = (_row_sum(v * v).sqrt() for v in (z, g))
    mean_z, mean_g = (norm_z, norm_g) if per_sample else (_row_mean(norm_z), _row_mean(norm_g))
    ratio, root = mean_z * _inverse(mean_g), (2 * tau).sqrt()
    step, width = tau * ratio.square(), root * ratio
    return _Parts(x, h, g, z, p, q, ratio, step, width, root, tau, norm_z, norm_g, mean_z, mean_g)


def _row_sum(v: Tensor) -> Tensor:
    """Sum over each sample, (B, 1, ...)."""
    return v.sum(tuple(range(1, v.dim())), keepdim=True) if v.dim() > 1 else v


def _row_mean(v: Tensor) -> Tensor:
    """Mean over the batch, (1, ...); 0 of none."""
    return v.sum(0, keepdim=True) / max(v.shape[0], 1)


def _inverse(v: Tensor) -> Tensor:
    """1 / v, and 0 for 0: a norm of zero moves nothing."""
    zero = v == 0
    return torch.where(zero, 0, 1 / torch.where(zero, 1, v))


class _LangevinStep(torch.autograd.Function):
    """Reverse mode. The derivatives are written in differentiable operations, so they have derivatives themselves."""

    @staticmethod
    def forward(
        x: Tensor,
        h: Tensor,
        coefficients: Tensor,
        noise: Tensor | None,
        rng: Tensor | None,
        samples: Tensor | None,
        per_sample: bool,
    ) -> Tensor:
        return _backend.op("langevin_step")(x, h, coefficients, noise, rng, samples, per_sample)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.per_sample = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h, coefficients, noise, rng, samples = ctx.saved_tensors
        s = _parts(x, h, coefficients, noise, rng, samples, ctx.per_sample)
        grad = grads[0].to(s.x.dtype)
        along_g, along_z = _row_sum(grad * s.g), _row_sum(grad * s.z)
        # d loss / d ln(ratio), shared by all samples where the ratio is
        pull = 2 * s.step * along_g + s.width * along_z
        pull = pull if ctx.per_sample else _row_mean(pull)
        grad_g = s.step * grad - pull * _inverse(s.mean_g) * _inverse(s.norm_g) * s.g
        grad_x = grad_h = grad_coefficients = grad_noise = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad + s.p * grad_g).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_h = (s.q * grad_g).to(h.dtype)
        if ctx.needs_input_grad[2]:
            grad_tau = s.ratio.square() * along_g + s.ratio / s.root * along_z
            rows = torch.stack([_row_sum(grad_g * s.x), _row_sum(grad_g * s.h), grad_tau], -1).reshape(-1, 3)
            grad_coefficients = rows if coefficients.dim() == 2 else rows.sum(0)
        if ctx.needs_input_grad[3]:
            grad_z = s.width * grad + pull * _inverse(s.mean_z) * _inverse(s.norm_z) * s.z
            grad_noise = grad_z.to(noise.dtype)
        return grad_x, grad_h, grad_coefficients, grad_noise, None, None, None


class _TransformableLangevinStep(_LangevinStep):
    """The same with forward mode and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _LangevinStep.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:-1])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, h, coefficients, noise, rng, samples = ctx.saved_tensors
        s = _parts(x, h, coefficients, noise, rng, samples, ctx.per_sample)
        dx, dh, dcoefficients, dz = (
            torch.zeros((), dtype=s.x.dtype, device=x.device) if t is None else t.to(s.x.dtype) for t in tangents[:4]
        )
        dp, dq, dtau = dcoefficients.expand(coefficients.shape).reshape(-1, 3, *[1] * (x.dim() - 1)).unbind(1)
        dg = s.p * dx + s.q * dh + dp * s.x + dq * s.h
        dmean_z, dmean_g = _row_sum(s.z * dz) * _inverse(s.norm_z), _row_sum(s.g * dg) * _inverse(s.norm_g)
        if not ctx.per_sample:
            dmean_z, dmean_g = _row_mean(dmean_z), _row_mean(dmean_g)
        dratio = (dmean_z - s.ratio * dmean_g) * _inverse(s.mean_g)
        dstep, dwidth = 2 * s.tau * s.ratio * dratio, s.root * dratio
        if tangents[2] is not None:  # sqrt(2 tau) has no derivative at tau = 0
            dstep, dwidth = dstep + s.ratio.square() * dtau, dwidth + s.ratio / s.root * dtau
        return (dx + dstep * s.g + s.step * dg + dwidth * s.z + s.width * dz).to(x.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """Samples with norms of their own join the batch; batches with norms in common are done one by one."""
        *tensors, per_sample = args
        if in_dims[4] is not None:
            raise ValueError("langevin_step: rng must not be mapped by vmap; map samples instead")
        count, batch = info.batch_size, args[0].shape[0 if in_dims[0] != 0 else 1]
        front = [
            t if t is None or i == 4 else t.expand(count, *t.shape) if dim is None else t.movedim(dim, 0)
            for i, (t, dim) in enumerate(zip(tensors, in_dims[:6], strict=True))
        ]
        if not per_sample:
            slices = [[t if t is None or i == 4 else t[k] for i, t in enumerate(front)] for k in range(count)]
            return torch.stack([_apply(s, per_sample) for s in slices]), 0
        if front[2].dim() == 2:
            front[2] = front[2].unsqueeze(1).expand(-1, batch, -1)
        joined = [t if t is None or i == 4 else t.flatten(0, 1) for i, t in enumerate(front)]
        return _apply(joined, per_sample).unflatten(0, (count, batch)), 0


def _apply(tensors: list[Any], per_sample: bool) -> Tensor:
    x, h, coefficients, noise, rng, samples = tensors
    return langevin_step(x, h, coefficients, noise=noise, rng=rng, samples=samples, per_sample=per_sample)

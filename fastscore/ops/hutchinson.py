"""Hutchinson's estimator of the divergence of a vector field, its probes drawn where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import needs_function
from fastscore.reference.group_norm_silu import channels_last as is_channels_last

KINDS = ("rademacher", "gaussian")


def hutchinson(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str = "rademacher") -> tuple[Tensor, Tensor]:
    """Estimates the trace of each sample's Jacobian J from its products with K random probes.

    The trace is the mean of eps . (J eps) over probes of mean 0 and covariance 1 (Hutchinson 1990, "A stochastic
    estimator of the trace of the influence matrix"; Skilling 1989); it is the divergence in the likelihood of
    continuous normalizing flows (Grathwohl et al. 2019, "FFJORD", eq. 8) and of score models (Song et al. 2021,
    "Score-based generative modeling through SDEs", appendix D.2, eq. 40). The probes are those of `hutchinson_probe`,
    drawn once more and not read, so that `jvp` alone is read, once. Products of the other side, (eps J), will do too.

    Args:
        jvp: J eps_k, (K, B, ...), float32, float64, bfloat16 or float16; any memory format. K >= 1.
        rng: int64 [2] = (seed, draw): probe k is draw + k, and
        samples: int64 [B], the index of the sample in each row; as `fastscore.noise` specifies.
        kind: "rademacher": random signs, which are exact where J is diagonal; or "gaussian": standard normals.

    Returns:
        (estimate, products): the mean over the probes, (B,), and eps_k . (J eps_k), (K, B), both float32, or float64
        for float64. The standard error of the estimate is products.std(0) / K ** 0.5; where the same probes are used
        along a trajectory, integrate the products. Sums are in float64. The numbers of a sample do not depend on its
        batch, nor do those of a probe on the others.

    Differentiable in `jvp`, in reverse and forward mode, any number of times; no derivative stores a probe.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    op = "hutchinson"
    _checks.is_state(op, "jvp", jvp)
    if jvp.dim() < 2 or jvp.shape[0] < 1:
        _checks.wrong_value(op, "jvp", "have shape (K, B, ...) with K >= 1", tuple(jvp.shape))
    _check_noise(op, rng, samples, jvp, jvp.shape[1], kind)
    if _backend.reference_asked(jvp.device):
        return reference.hutchinson(jvp, rng, samples, kind)
    return _hutchinson(jvp, rng, samples, kind)


def hutchinson_probe(
    shape: Sequence[int],
    rng: Tensor,
    samples: Tensor,
    probes: int = 1,
    kind: str = "rademacher",
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Draws the probes of `hutchinson`: probe k is `philox_rademacher` or `philox_normal` of (seed, draw + k).

    Args:
        shape: (B, ...), that of the state.
        rng, samples, kind: as in `hutchinson`; on the device of the result.
        probes: K >= 1.
        dtype: float32, float64, bfloat16 or float16.
        channels_last: whether the samples, (C, ...), are stored with channels fastest, as the network may want them.

    Returns:
        Tensor (K, *shape): dense, the probes one behind the other. `probes.flatten(0, 1)` is a batch.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    op = "hutchinson_probe"
    if len(shape) == 0:
        _checks.wrong_value(op, "shape", "be (B, ...)", "()")
    if dtype not in _checks.FLOATING:
        _checks.wrong_type(op, "dtype", "be float32, float64, bfloat16 or float16", dtype)
    if isinstance(probes, bool) or not isinstance(probes, int):
        _checks.wrong_type(op, "probes", "be an int", type(probes).__name__)
    if probes < 1:
        _checks.wrong_value(op, "probes", "be at least 1", probes)
    if channels_last and len(shape) < 3:
        _checks.wrong_value(op, "shape", "be (B, C, ...) where channels_last is asked for", tuple(shape))
    _check_noise(op, rng, samples, rng, shape[0], kind)
    if _backend.reference_asked(rng.device):
        return reference.hutchinson_probe(shape, rng, samples, probes, kind, dtype, channels_last=channels_last)
    return _backend.op(op)(rng, samples, None, probes, shape, dtype, kind, channels_last)


def _check_noise(op: str, rng: object, samples: object, x: object, batch: int, kind: str) -> None:
    if not isinstance(x, Tensor):
        _checks.wrong_type(op, "rng", "be an int64 tensor, (seed, draw)", type(rng).__name__)
    _checks.indices(op, "rng", rng, x, 2, "(seed, draw)")
    _checks.indices(op, "samples", samples, x, batch, "the index of each row")
    if kind not in KINDS:
        _checks.wrong_value(op, "kind", "be 'rademacher' or 'gaussian'", repr(kind))


def _hutchinson(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if needs_function(jvp):
        if not torch.compiler.is_compiling():
            # autograd.grad(is_grads_batched=True) knows torch's own ops only.
            if torch._C._functorch.is_legacy_batchedtensor(jvp):
                return reference.hutchinson(jvp, rng, samples, kind)
            return _TransformableHutchinson.apply(jvp, rng, samples, kind)
        # Dynamo refuses a Function that defines jvp or vmap, and every Function inside torch.func.
        if torch._C._are_functorch_transforms_active():
            return reference.hutchinson(jvp, rng, samples, kind)
        return _Hutchinson.apply(jvp, rng, samples, kind)
    return _backend.op("hutchinson")(jvp, rng, samples, kind)


def _weighted(
    weight: Tensor, rng: Tensor, samples: Tensor, shape: Sequence[int], dtype: torch.dtype, kind: str, last: bool
) -> Tensor:
    """weight (K, B) times the probes: the transpose of `hutchinson`."""
    probes = weight.shape[0]
    plain = needs_function(weight) and (
        torch._C._are_functorch_transforms_active()
        if torch.compiler.is_compiling()
        else torch._C._functorch.is_legacy_batchedtensor(weight)
    )
    if plain:
        return reference.hutchinson_probe(shape, rng, samples, probes, kind, dtype, channels_last=last, weight=weight)
    if needs_function(weight):
        function = _WeightedProbe if torch.compiler.is_compiling() else _TransformableWeightedProbe
        return function.apply(weight, rng, samples, list(shape), dtype, kind, last)
    return _backend.op("hutchinson_probe")(rng, samples, weight, probes, shape, dtype, kind, last)


class _Hutchinson(torch.autograd.Function):
    """Reverse mode."""

    @staticmethod
    def forward(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        return _backend.op("hutchinson")(jvp, rng, samples, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        jvp, rng, samples, ctx.kind = inputs
        ctx.probes, *ctx.shape = jvp.shape
        ctx.dtype, ctx.last = jvp.dtype, is_channels_last(jvp[0])
        ctx.save_for_backward(rng, samples)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_estimate, of_products = grads
        weight = of_products + of_estimate / ctx.probes
        rng, samples = ctx.saved_tensors
        return _weighted(weight, rng, samples, ctx.shape, ctx.dtype, ctx.kind, ctx.last), None, None, None


class _TransformableHutchinson(_Hutchinson):
    """The same with forward mode and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _Hutchinson.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, Tensor]:
        rng, samples = ctx.saved_tensors
        return _hutchinson(tangents[0], rng, samples, ctx.kind)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The mapped dimension joins the batch: rows know nothing of each other."""
        jvp, rng, samples, kind = args
        rows = _mapped(jvp, in_dims[0], info.batch_size, 1)
        index = _mapped_noise(in_dims[1], samples, in_dims[2], info.batch_size)
        estimate, products = _hutchinson(rows.flatten(1, 2), rng, index, kind)
        return (estimate.unflatten(0, (info.batch_size, -1)), products.unflatten(1, (info.batch_size, -1))), (0, 1)


class _WeightedProbe(torch.autograd.Function):
    """`_weighted` in reverse mode."""

    @staticmethod
    def forward(
        weight: Tensor, rng: Tensor, samples: Tensor, shape: list[int], dtype: torch.dtype, kind: str, last: bool
    ) -> Tensor:
        return _backend.op("hutchinson_probe")(rng, samples, weight, weight.shape[0], shape, dtype, kind, last)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, rng, samples, *ctx.settings = inputs
        ctx.save_for_backward(rng, samples)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rng, samples = ctx.saved_tensors
        return _hutchinson(grads[0], rng, samples, ctx.settings[2])[1], *[None] * 6


class _TransformableWeightedProbe(_WeightedProbe):
    """The same with forward mode and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _WeightedProbe.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _weighted(tangents[0], *ctx.saved_tensors, *ctx.settings)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        weight, rng, samples, shape, dtype, kind, last = args
        count = info.batch_size
        rows = _mapped(weight, in_dims[0], count, 1).flatten(1, 2)
        index = _mapped_noise(in_dims[1], samples, in_dims[2], count)
        out = _weighted(rows, rng, index, [count * shape[0], *shape[1:]], dtype, kind, last)
        return out.unflatten(1, (count, -1)), 1


def _mapped(tensor: Tensor, dim: int | None, count: int, to: int) -> Tensor:
    """The tensor with the dimension that vmap maps over at `to`."""
    return (
        tensor.unsqueeze(to).expand(*tensor.shape[:to], count, *tensor.shape[to:])
        if dim is None
        else (tensor.movedim(dim, to))
    )


def _mapped_noise(rng_dim: int | None, samples: Tensor, dim: int | None, count: int) -> Tensor:
    if rng_dim is not None:
        raise ValueError("hutchinson: rng must not be mapped by vmap; map samples instead")
    return _mapped(samples, dim, count, 0).flatten()

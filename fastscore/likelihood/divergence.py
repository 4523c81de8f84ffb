"""Value and divergence of a vector field in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastscore import _checks
from fastscore.likelihood.constant_weights import ConstantWeights
from fastscore.likelihood.probes import Probes
from fastscore.noise import Noise, as_noise
from fastscore.ops._derivatives import inputs_only

__all__ = ["MODES", "Divergence", "check_output", "divergence", "estimate", "standard_error"]

Field = Callable[[Tensor], Tensor]
MODES = ("vjp", "jvp")
_CACHED = 2**14  # elements of a backward pass beyond which a CPU is faster with the next ones in a pass of their own


@dataclass(frozen=True)
class Divergence:
    """A vector field and its divergence at the samples of a batch; sums are float32, or float64 for float64.

    Attributes:
        value: the field, (B, ...), in the dtype of x.
        divergence: the trace of each sample's Jacobian, or its estimate, (B,).
        standard_error: of the estimate over probes, (B,): 0 for the exact trace, NaN for one probe, which has none.
        products: what each probe gives for the divergence, their mean, (K, B); (1, B) for the exact trace.
    """

    value: Tensor
    divergence: Tensor
    standard_error: Tensor
    products: Tensor


@torch.no_grad()
def divergence(
    field: Field,
    x: Tensor,
    *,
    method: str = "hutchinson",
    mode: str = "vjp",
    probes: int = 1,
    kind: str = "rademacher",
    seed: int = 0,
    noise: Noise | None = None,
    draw: int = 0,
) -> Divergence:
    """Computes a vector field and its divergence, the trace of the Jacobian, at every sample of a batch.

    Args:
        field: called as ``field(x)``, gives a tensor like x; a sample's output must depend on that sample alone.
        x: the samples, (B, ...), float32, float64, bfloat16 or float16.
        method: ``"hutchinson"``: the mean of eps . (J eps) over K random probes (Hutchinson 1990; Grathwohl et al.,
            arXiv 1810.01367, eq. 8); ``"exact"``: the trace from all D basis vectors at once, D times a batch's memory;
            ``"hutch++"``: the trace exactly on the range of J times K sketching probes, and estimated by K more outside
            of it (Meyer et al., arXiv 2010.09649, algorithm 1): 3 K products, exact from K = D on.
        mode: how products with the Jacobian are made. ``"vjp"``: one call of the field with a tape, then a batched
            backward pass, or on a CPU several where the state is large; ``"jvp"``: the value and all tangents together
            in forward mode, without a tape, so that memory does not grow with the depth of a network. "hutch++" needs
            two passes in turn: two backward passes after one call of the field, or two calls in forward mode.
        probes: K, at least 1; ignored by "exact".
        kind: ``"rademacher"`` or ``"gaussian"``; ignored by "exact".
        seed: names the probes: those of a sample do not depend on its batch.
        noise: where the probes come from, in place of seed.
        draw: number of the first draw of the noise; K draws are taken, 2 K by "hutch++".

    Returns:
        A `Divergence`. Not differentiable.

    Raises:
        TypeError, ValueError: an argument does not fit, or the field's output is not like x, or depends on x in a way
            that autograd does not see.
    """
    op = "divergence"
    _checks.is_state(op, "x", x)
    if not callable(field):
        _checks.wrong_type(op, "field", "be callable as field(x)", type(field).__name__)
    source = Probes.of(op, x, as_noise(seed, noise), method, probes, kind, draw)
    value, products = estimate(op, field, x, source, method, mode)
    return Divergence(value, products.mean(0), standard_error(products, method), products)


def standard_error(products: Tensor, method: str) -> Tensor:
    """Of the mean of products (K, B) over K: (B,)."""
    if method == "exact":
        return torch.zeros_like(products[0])
    if len(products) == 1:
        return torch.full_like(products[0], math.nan)
    return products.std(0) / len(products) ** 0.5


def estimate(op: str, field: Field, x: Tensor, probes: Probes, method: str, mode: str) -> tuple[Tensor, Tensor]:
    """The field (B, ...) and what each probe gives for its divergence (K, B)."""
    if mode not in MODES:
        _checks.wrong_value(op, "mode", f"be one of {', '.join(MODES)}", repr(mode))
    passes = 2 if method == "hutch++" else 1
    jacobian = _Reverse(op, field, x, passes) if mode == "vjp" else _Forward(op, field, x)
    if method == "hutchinson":
        products = probes.products(jacobian(probes.tensor()))
    elif method == "exact":
        products = _trace(jacobian, x)[None]
    else:
        products = _hutch_plus_plus(jacobian, x, probes.tensor())
    return jacobian.value, products


class _Reverse:
    """Products of vectors (K, B, ...) with the Jacobian from the left: a field is called once, on a tape.

    Attributes:
        value: the field at x.
    """

    def __init__(self, op: str, field: Field, x: Tensor, passes: int) -> None:
        self._left = passes
        self._x = x.detach().requires_grad_()
        with torch.enable_grad(), inputs_only():
            self._output = field(self._x)
        check_output(op, "field", self._output, x)
        if not self._output.requires_grad:
            _checks.wrong_value(
                op, "field", "depend on x by operations that autograd sees, for mode='vjp'", "an output without a tape"
            )
        self.value = self._output.detach()

    def __call__(self, vectors: Tensor) -> Tensor:
        self._left -= 1
        at_once = len(vectors)
        if vectors.is_cpu:
            at_once = max(1, _CACHED // max(self._x.numel(), 1))
        parts = vectors.split(at_once)
        products = [self._part(part, keep=self._left > 0 or part is not parts[-1]) for part in parts]
        return products[0] if len(products) == 1 else torch.cat(products)

    def _part(self, vectors: Tensor, keep: bool) -> Tensor:
        several = len(vectors) > 1
        (products,) = torch.autograd.grad(
            self._output,
            self._x,
            vectors if several else vectors[0],
            retain_graph=keep,
            is_grads_batched=several,
            materialize_grads=True,
        )
        return products if several else products[None]


class _Forward:
    """Products of the Jacobian with vectors (K, B, ...): a field is called once for all of them."""

    def __init__(self, op: str, field: Field, x: Tensor) -> None:
        self._op, self._field, self._x = op, field, x
        self.value = x  # until the first call

    def __call__(self, vectors: Tensor) -> Tensor:
        def along(vector: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(self._checked, (self._x,), (vector,))[:2]

        with ConstantWeights():
            if len(vectors) == 1:  # without torch.func, whose bookkeeping takes as long as some layers
                with forward_ad.dual_level():
                    output = self._checked(forward_ad.make_dual(self._x, vectors[0]))
                    self.value, product = forward_ad.unpack_dual(output)
                return torch.zeros_like(vectors) if product is None else product[None]
            value, products = torch.func.vmap(along)(vectors)
        self.value = value[0]  # the value has no part in the map: its first dimension is an expanded one
        return products

    def _checked(self, x: Tensor) -> Tensor:
        value = self._field(x)
        check_output(self._op, "field", value, self._x)
        return value


def check_output(op: str, argument: str, value: object, x: Tensor) -> None:
    """Raise unless what a field or a network gives for x is like x."""
    if not isinstance(value, Tensor):
        _checks.wrong_type(op, argument, "return a tensor", type(value).__name__)
    if value.shape != x.shape or value.dtype != x.dtype:
        accepted, got = (f"{tuple(tensor.shape)} of {tensor.dtype}" for tensor in (x, value))
        _checks.wrong_value(op, argument, f"return a tensor like x, {accepted}", got)


def _trace(jacobian: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of each sample's Jacobian, (B,)."""
    size = math.prod(x.shape[1:])
    basis = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *x.shape[1:]).expand(size, *x.shape)
    diagonal = jacobian(basis).reshape(size, len(x), size).diagonal(dim1=0, dim2=2)
    return diagonal.sum(1, dtype=torch.float64).to(_checks.accumulation_dtype(x.dtype))


def _hutch_plus_plus(jacobian: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor) -> Tensor:
    """What each of K probes gives for the trace, (K, B), of 2 K: K that sketch the range, K that look outside it."""
    dtype, count, rows = _checks.accumulation_dtype(x.dtype), len(probes) // 2, (len(x), math.prod(x.shape[1:]))
    sketch = jacobian(probes[:count]).reshape(count, *rows).to(dtype)
    basis = torch.linalg.qr(sketch.permute(1, 2, 0)).Q  # (B, D, min(K, D))
    rest = probes[count:].reshape(count, *rows).to(dtype).permute(1, 2, 0)
    rest = rest - basis @ (basis.mT @ rest)
    vectors = torch.cat([basis, rest], 2).permute(2, 0, 1)
    images = jacobian(vectors.to(x.dtype).reshape(-1, *x.shape)).reshape(vectors.shape)
    products = (vectors.double() * images.double()).sum(2)
    inside, outside = products.split([basis.shape[2], count])
    return (inside.sum(0) + outside).to(dtype)

"""What the ops must do at least: bytes to and from memory, and floating-point operations.

Bytes are those of every large operand once, however the op is cut into kernels, and of a second reading where the first
one must have ended before it begins (a norm before the update that it scales) and a sample does not fit on the chip.
Operations are additions and multiplications of 2 to a multiply-add; an exponential or a normal counts as `FUNCTION`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

FUNCTION = 8  # operations that an exponential, a logarithm or a sine stands for
_NORMAL = 30  # operations of a normal: its share of ten rounds of Philox, of a logarithm, a root, a sine and a cosine


class Cost(NamedTuple):
    """Bytes moved and operations done."""

    bytes: int
    operations: int


def cost(name: str, args: tuple[Any, ...], result: Any, **keywords: Any) -> Cost:
    """The cost of a call of the op `name`, such as "linear_step", with the arguments of its schema.

    Args:
        args, keywords: its arguments; tensors may be fake.
        result: what it returned.

    Raises:
        KeyError: there is no such op.
    """
    return _COSTS[name](args, result, **keywords)


def named() -> frozenset[str]:
    """The ops that have a cost."""
    return frozenset(_COSTS)


def size(*values: Any) -> int:
    """Bytes of the tensors in nested values, None among them; an expanded one has those of its memory."""
    total = 0
    for tensor in tree_leaves(values):
        if isinstance(tensor, Tensor):
            count = 1
            for extent, stride in zip(tensor.shape, tensor.stride(), strict=True):
                count *= extent if stride or not extent else 1
            total += count * tensor.element_size()
    return total


def _linear_step(args: tuple[Any, ...], _: Any) -> Cost:
    x, history, _, noise, rng, _ = args
    terms = len(history) + (noise is not None or rng is not None)
    drawn = 0 if rng is None else _NORMAL
    return Cost(2 * size(x) + size(history, noise), x.numel() * (1 + 2 * terms + drawn))


def _masked_replace(args: tuple[Any, ...], _: Any) -> Cost:
    x, known, mask, _, noise, rng, _ = args
    drawn = 0 if rng is None else _NORMAL
    return Cost(2 * size(x) + size(known, mask, noise), x.numel() * (3 + drawn))


def _solver_step(args: tuple[Any, ...], result: Any, m: Tensor | None = None) -> Cost:
    x, h, history, _, exponent, noise, rng, _ = args
    kept = x if isinstance(result, tuple) else m
    operations = 8 + 2 * len(history) + (0 if rng is None else _NORMAL) + (0 if exponent is None else FUNCTION)
    return Cost(2 * size(x) + size(h, history, exponent, noise, kept), x.numel() * operations)


def _langevin_step(args: tuple[Any, ...], _: Any) -> Cost:
    x, h, _, noise, rng, *_ = args
    # x, h and a given noise twice: the norms come first
    return Cost(3 * size(x) + 2 * size(h, noise), x.numel() * (14 + (0 if rng is None else 2 * _NORMAL)))


def _error_norm(args: tuple[Any, ...], result: Tensor) -> Cost:
    terms, _, u, v, *_ = args
    every = {id(t): t for t in (*terms, u, v)}  # a state that is a term and a scale is read once
    return Cost(size(list(every.values()), result), u.numel() * (2 * len(terms) + 6))


def _philox(args: tuple[Any, ...], result: Tensor) -> Cost:
    return Cost(size(result), result.numel() * _NORMAL)


def _group_norm_silu_fwd(args: tuple[Any, ...], result: Any) -> Cost:
    # a group fits on the chip, or is read again: the least is once
    return Cost(size(args, result), args[0].numel() * (10 + FUNCTION))


def _group_norm_silu_into(args: tuple[Any, ...], _: Any) -> Cost:
    return _group_norm_silu_fwd(args[:-1], args[-1])


def _group_norm_silu_more(args: tuple[Any, ...], result: Any) -> Cost:
    return Cost(size(args, result), args[0].numel() * (25 + FUNCTION))


def _resample(args: tuple[Any, ...], result: Tensor) -> Cost:
    x, taps, up, *_ = args
    # of the taps, one in up^2 hits a pixel and no zero in between
    return Cost(size(x, taps, result), 2 * result.numel() * -(-taps.numel() // up**2))


def _group_affine_into(args: tuple[Any, ...], _: Any) -> Cost:
    x, *rest = args
    if rest[6] is not None:  # strips
        return Cost(size(rest), 4 * rest[6].numel())
    return Cost(size(args), 4 * x.numel())  # x - center, and two sums


def _conv3x3_weights(args: tuple[Any, ...], result: Tensor) -> Cost:
    weight, tile, _ = args
    side = tile + 2  # nine weights, to (side, 3), then to (side, side) points
    return Cost(size(weight, result), weight.numel() // 9 * 6 * side * (3 + side))


def _conv3x3_winograd(args: tuple[Any, ...], result: Tensor) -> Cost:
    x, _, outputs, tile, *_ = args
    batch, channels, height, width = x.shape
    tiles, points = batch * -(-height // tile) * -(-width // tile), (tile + 2) ** 2
    front = FUNCTION * x.numel() if args[-1] else 0
    return Cost(size(args, result), 2 * tiles * points * channels * outputs + front)


def _conv3x3_winograd_into(args: tuple[Any, ...], _: Any) -> Cost:
    x, _, outputs, tile, *_, silu, _, statistics, out = args
    batch, _, height, width = out.shape
    tiles, points = batch * -(-height // tile) * -(-width // tile), (tile + 2) ** 2
    front = FUNCTION * x.numel() if silu else 0
    moments = 0 if statistics is None else 3 * out.numel()
    return Cost(size(args), 2 * tiles * points * x.shape[1] * outputs + front + moments)


def _conv_gemm_into(args: tuple[Any, ...], _: Any) -> Cost:
    x, _, _, kernel, *_, silu, _, out = args
    return Cost(size(args), 2 * out.numel() * x.shape[1] * kernel**2 + (FUNCTION * x.numel() if silu else 0))


def _hutchinson(args: tuple[Any, ...], result: Any) -> Cost:
    jvp, _, _, kind = args
    return Cost(size(jvp, result), jvp.numel() * (2 + (_NORMAL if kind == "gaussian" else 1)))


def _attention(products: int, args: tuple[Any, ...], result: Any) -> Cost:
    q, k = args[1:3] if products == 5 else args[:2]  # the backward has the gradient of y in front
    batch, heads, rows, width = q.shape
    scores = batch * heads * rows * k.shape[2]
    return Cost(size(args, result), scores * (2 * width * products + FUNCTION))


_COSTS: dict[str, Callable[..., Cost]] = {
    "attention_fwd": partial(_attention, 2),  # scores and weighted values
    "attention_bwd": partial(_attention, 5),  # scores again, and the gradients of weights, values, queries and keys
    "attention_into": lambda args, _: _attention(2, args, None),
    "attention_jvp": partial(_attention, 6),  # two for the scores' tangent and two for the values' more
    "conv3x3_weights": _conv3x3_weights,
    "conv3x3_winograd": _conv3x3_winograd,
    "conv3x3_winograd_into": _conv3x3_winograd_into,
    "conv_gemm_into": _conv_gemm_into,
    "conv_gemm_weights": lambda args, result: Cost(size(args, result), 0),
    "hutchinson": _hutchinson,
    "hutchinson_probe": _philox,
    "resample": _resample,
    "resample_into": lambda args, _: _resample(args[:-1], args[-1]),
    "linear_step": _linear_step,
    "linear_step_": _linear_step,
    "masked_replace_": _masked_replace,
    "solver_step": _solver_step,
    "solver_step_": _solver_step,
    "langevin_step": _langevin_step,
    "langevin_step_": _langevin_step,
    "error_norm": _error_norm,
    "philox_normal": _philox,
    "philox_rademacher": _philox,
    "group_affine_into": _group_affine_into,
    "group_norm_silu_fwd": _group_norm_silu_fwd,
    "group_norm_silu_into": _group_norm_silu_into,
    "group_norm_silu_bwd": _group_norm_silu_more,
    "group_norm_silu_jvp": _group_norm_silu_more,
}

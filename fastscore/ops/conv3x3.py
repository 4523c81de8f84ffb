"""3x3 convolution with fewer multiplications, and with its neighbors in a residual block, in one pass."""

from __future__ import annotations

import os
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fastscore import _backend, _checks, reference
from fastscore._library import NATIVE
from fastscore.ops import _plans
from fastscore.ops._derivatives import needs_function, wanted
from fastscore.reference.conv3x3 import behind, in_front
from fastscore.reference.conv3x3 import turned as _turned

_OP = "conv3x3"
METHODS = ("auto", "direct", "winograd2", "winograd4")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    method: str = "auto",
) -> Tensor:
    """Computes ``(conv(act(gain x + offset), weight) + bias + shift + residual) scale``, with stride 1 and padding 1.

    act is SiLU or nothing. `gain` and `offset` are what a GroupNorm does to a channel of a sample, `shift` is the time
    embedding of a residual block, `residual` and `scale` its end. Zeros are padded after act.

    Winograd's algorithm F(m x m, 3 x 3) (Lavin and Gray, arXiv 1509.09308) takes 2.25 (m = 2) or 4 times (m = 4) fewer
    multiplications than the sum itself, and errs by about 1.1 and 1.6 times as much. Its transformed weights, 16 / 9 or
    4 times the numbers of `weight` in float32, are kept as long as the tensor `weight` lives, and made anew when it has
    changed. bfloat16 is how images lie in memory: the arithmetic is float32, the result is rounded once.

    Args:
        x: (B, C, H, W), float32, float64, bfloat16 or float16; any memory format.
        weight: (K, C, 3, 3). bias: (K,). gain, offset: (B, C), both or neither. shift: (B, K). residual: (B, K, H, W).
            All of the dtype of x and on its device.
        silu: apply SiLU before the convolution.
        scale: a number.
        method: "direct": torch's convolution; "winograd2", "winograd4": m = 2 or 4, for float32 and bfloat16 on a CPU;
            "auto": what is likely to be fastest; "direct" under torch.compile. Of bfloat16 that is torch's convolution
            on a CPU with AMX, and Winograd's elsewhere.

    Returns:
        Tensor (B, K, H, W); channels last where `x` is, else contiguous.

    Differentiable in all tensors, in reverse and forward mode; the gradient in x is the same kernel, on turned weights.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check(x, weight, bias, gain, offset, shift, residual, scale, method)
    chosen = _chosen(x, weight) if method == "auto" else method
    if chosen == "direct" or _backend.reference_asked(x.device):
        return reference.conv3x3(
            x, weight, bias, gain=gain, offset=offset, silu=silu, shift=shift, residual=residual, scale=scale
        )
    if not needs_function(x, weight, bias, gain, offset, shift, residual):
        return _winograd(x, weight, chosen, bias, shift, residual, scale, gain, offset, silu)
    out = _convolved(in_front(x, gain, offset, silu), weight, chosen)
    return behind(out, bias, shift, residual, scale)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    scale: float,
    method: str,
) -> None:
    _checks.is_state(_OP, "x", x)
    if x.dim() != 4:
        _checks.wrong_value(_OP, "x", "have shape (B, C, H, W)", tuple(x.shape))
    if not isinstance(weight, Tensor):
        _checks.wrong_type(_OP, "weight", "be a tensor", type(weight).__name__)
    batch, channels, height, width = x.shape
    if weight.dim() != 4 or weight.shape[1:] != (channels, 3, 3) or not weight.shape[0]:
        _checks.wrong_value(_OP, "weight", f"have shape (K, {channels}, 3, 3)", tuple(weight.shape))
    outputs = weight.shape[0]
    for name, value, shape in (
        ("weight", weight, weight.shape),
        ("bias", bias, (outputs,)),
        ("gain", gain, (batch, channels)),
        ("offset", offset, (batch, channels)),
        ("shift", shift, (batch, outputs)),
        ("residual", residual, (batch, outputs, height, width)),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            _checks.wrong_type(_OP, name, "be a tensor or None", type(value).__name__)
        if value.dtype != x.dtype:
            _checks.wrong_type(_OP, name, f"have the dtype of x, {x.dtype}", value.dtype)
        if value.shape != shape:
            _checks.wrong_value(_OP, name, f"have shape {tuple(shape)}", tuple(value.shape))
        _checks.same_device(_OP, name, value, x)
    if (gain is None) != (offset is None):
        _checks.wrong_value(_OP, "offset" if offset is None else "gain", "be given with the other", None)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        _checks.wrong_type(_OP, "scale", "be a number", type(scale).__name__)
    if method not in METHODS:
        _checks.wrong_value(_OP, "method", f"be one of {', '.join(METHODS)}", repr(method))
    if method.startswith("winograd") and not _has_winograd(x):
        accepted = "be auto or direct but for float32 or bfloat16 on a CPU, with the native library"
        _checks.wrong_value(_OP, "method", accepted, f"{method!r} for {x.dtype} on {x.device}")


def _has_winograd(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu" and NATIVE is not None


def _chosen(x: Tensor, weight: Tensor) -> str:
    """The method of "auto"."""
    if not _has_winograd(x) or torch.compiler.is_compiling():
        return "direct"  # in a graph the weights would be transformed at every call
    return cheapest(*x.shape, weight.shape[0], torch.get_num_threads(), x.dtype)


@lru_cache(maxsize=4096)
def cheapest(
    batch: int, channels: int, height: int, width: int, outputs: int, threads: int, dtype: torch.dtype = torch.float32
) -> str:
    """The method that takes the least time: as measured, or by a count of instructions and of weights to be read."""
    if dtype is torch.float32:
        measured = _plans.planned((batch, channels, height, width, outputs), threads)
        if measured is not None:
            return measured

    def winograd(tile: int) -> float:
        points, tiles = (tile + 2) ** 2, batch * -(-height // tile) * -(-width // tile)
        products = points * tiles * channels * outputs / _LANES / 0.8
        transforms = _PER_POINT * points * tiles * (channels + outputs) / _LANES
        passes = max(1, tiles / threads / _TILES)  # each thread reads all the weights for every block of tiles
        reading = 4 * points * channels * outputs * passes / _BYTES
        return max(products / threads, reading) + transforms / threads

    direct = 9 * batch * height * width * channels * outputs / _LANES / 0.8 / threads
    if dtype is torch.bfloat16:
        direct *= _bfloat16_cost()
    costs = {"direct": direct, "winograd2": winograd(2), "winograd4": winograd(4)}
    if min(channels, outputs) < _LANES:
        return "direct"
    return min(costs, key=costs.__getitem__)


# Elements of a vector; instructions for an element of a point, in and out; tiles that share a reading of the weights;
# bytes of weights that arrive in the time of an instruction.
_LANES, _PER_POINT, _TILES, _BYTES = 8, 6.0, 48, 6.0


@lru_cache
def _bfloat16_cost() -> float:
    """Time of oneDNN's convolution of bfloat16 over that of float32, as measured with each set of instructions."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()  # oneDNN's own limit
    amx = allowed in ("ALL", "DEFAULT") or "AMX" in allowed
    if amx and torch.cpu._is_amx_tile_supported():
        return 0.17
    if (amx or "16" in allowed) and torch.cpu._is_avx512_bf16_supported():
        return 1.5
    return 5.0


def _winograd(
    x: Tensor,
    weight: Tensor,
    method: str,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    turned: bool = False,
) -> Tensor:
    """`turned`: the convolution that gives the gradient in the input."""
    tile, outputs = int(method[-1]), weight.shape[1 if turned else 0]
    packed = transformed(weight, tile, turned)
    return _backend.op("conv3x3_winograd")(
        x, packed, outputs, tile, bias, shift, residual, float(scale), gain, offset, silu
    )


_TRANSFORMED: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> {(tile, turned): (version, transformed)}


def transformed(weight: Tensor, tile: int, turned: bool = False) -> Tensor:
    """The transformed weights, made anew where `weight` has been written to since."""
    weight = torch._C._functorch.unwrap_if_dead(weight)  # what torch.func.vjp gives back after it has ended
    version = (0 if weight.is_inference() else weight._version, weight.data_ptr())
    known = _TRANSFORMED.setdefault(weight, {})
    if known.get((tile, turned), (None,))[0] != version:
        with torch.no_grad():
            known[tile, turned] = version, torch.ops.fastscore.conv3x3_weights(weight, tile, turned)
    packed: Tensor = known[tile, turned][1]
    return packed


def transformed_bytes() -> int:
    """Memory of the transformed weights that are kept now."""
    return sum(packed.nbytes for known in _TRANSFORMED.values() for _, packed in known.values())


def _convolved(x: Tensor, weight: Tensor, method: str, turned: bool = False) -> Tensor:
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_legacy_batchedtensor(x)
    if method == "direct" or (traced and needs_function(x, weight)):
        return torch.nn.functional.conv2d(x, _turned(weight) if turned else weight, padding=1)
    if needs_function(x, weight):
        result: Tensor = _Convolution.apply(x, weight, method, turned)
        return result
    return _winograd(x, weight, method, turned=turned)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, method: str, turned: bool) -> Tensor:
        return _winograd(x, weight, method, turned=turned)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.settings = inputs
        ctx.weight_wanted = wanted(weight)
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return (None,) * 4
        x, weight = ctx.saved_tensors
        method, turned = ctx.settings
        grad_x = _convolved(grad, weight, method, not turned) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1] and ctx.weight_wanted:  # the turned convolution has x and the gradient exchanged
            grad_weight = _weight_gradient(x, grad, weight) if turned else _weight_gradient(grad, x, weight)
        return grad_x, grad_weight, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        dx, dweight, *_ = tangents
        x, weight = ctx.saved_tensors
        along = [_convolved(*pair, *ctx.settings) for pair in ((dx, weight), (x, dweight)) if None not in pair]
        return sum(along[1:], along[0]) if along else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """A mapped dimension of x joins the batch; mapped weights are left to torch."""
        x, weight, *settings = args
        if in_dims[1] is not None:
            convolve = partial(_convolved, method="direct", turned=settings[1])
            return torch.func.vmap(convolve, in_dims[:2])(x, weight), 0
        out = _convolved(x.movedim(in_dims[0], 0).flatten(0, 1), weight, *settings)
        return out.unflatten(0, (info.batch_size, -1)), 0


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    sides = [1, 1]
    if x.is_contiguous(memory_format=torch.channels_last):
        # only its shape is asked for; torch would copy it, and the gradient back, between formats
        weight = torch.empty_like(weight, memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, sides, sides, sides, False, [0, 0], 1, [False, True, False]
    )[1]

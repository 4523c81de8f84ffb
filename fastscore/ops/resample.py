"""Up- and downsampling of images by two with a FIR filter: read once, written once, no zeros multiplied."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import needs_function
from fastscore.reference.resample import resample_to, resampled_size

_OP = "resample"
MAX_TAPS = 8  # to a row: kernels hold them in registers


def resample(x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Puts up - 1 zeros after every pixel, pads with zeros, convolves with `taps`, and keeps every down-th pixel.

    The anti-aliased resampling of NCSN++ (Song et al. 2021, "Score-based generative modeling through SDEs", appendix
    H.2, after Zhang 2019, "Making convolutional networks shift-invariant again"); rows and columns alike, each channel
    by itself. The formula is in `fastscore/reference/resample.py`.

    Args:
        x: (B, C, H, W), float32, float64, bfloat16 or float16; any memory format.
        taps: the filter, (L, L) with L <= 8, floating point, on the device of `x`; used in the dtype of the sums. No
            derivative is taken in it.
        up: 1 or 2, and
        down: 1 or 2; not both are 2.
        padding: how many rows and columns of zeros come before and after, at least 0.

    Returns:
        Tensor (B, C, (up H + before + after - L) // down + 1, ...) of the dtype of `x`; channels last where `x` is,
        else contiguous. Sums are in float32, or in float64 for float64, rounded once.

    Differentiable in `x`, in reverse and forward mode, any number of times: each derivative is this op again.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check(x, taps, up, down, padding)
    if _backend.reference_asked(x.device):
        return reference.resample(x, taps, up=up, down=down, padding=padding)
    weights = taps.to(_checks.accumulation_dtype(x.dtype))
    return _resample(x, weights, up, down, padding[0], resampled_size(x, taps, up, down, padding), False)


def _check(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int]) -> None:
    _checks.is_state(_OP, "x", x)
    if x.dim() != 4:
        _checks.wrong_value(_OP, "x", "have shape (B, C, H, W)", tuple(x.shape))
    if not isinstance(taps, Tensor):
        _checks.wrong_type(_OP, "taps", "be a tensor", type(taps).__name__)
    if taps.dtype not in _checks.FLOATING:
        _checks.wrong_type(_OP, "taps", "be float32, float64, bfloat16 or float16", taps.dtype)
    if taps.dim() != 2 or taps.shape[0] != taps.shape[1] or not 1 <= taps.shape[0] <= MAX_TAPS:
        _checks.wrong_value(_OP, "taps", f"have shape (L, L), 1 <= L <= {MAX_TAPS}", tuple(taps.shape))
    _checks.same_device(_OP, "taps", taps, x)
    if taps.requires_grad:
        _checks.wrong_value(_OP, "taps", "not require a gradient", "taps that do")
    for name, value in (("up", up), ("down", down)):
        if isinstance(value, bool) or value not in (1, 2):
            _checks.wrong_value(_OP, name, "be 1 or 2", repr(value))
    if up == down == 2:
        _checks.wrong_value(_OP, "down", "be 1 where up is 2", 2)
    pair = isinstance(padding, tuple) and len(padding) == 2
    if not pair or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in padding):
        _checks.wrong_value(_OP, "padding", "be (before, after), integers of at least 0", repr(padding))
    size = resampled_size(x, taps, up, down, padding)
    if min(size) < 1:
        _checks.wrong_value(_OP, "x", "with its padding be no smaller than taps", f"a result of size {tuple(size)}")


def _resample(x: Tensor, taps: Tensor, up: int, down: int, before: int, size: list[int], flip: bool) -> Tensor:
    """`reference.resample.resample_to` on the backend now chosen; `taps` in the dtype of the sums."""
    if needs_function(x):
        if not torch.compiler.is_compiling():
            # autograd.grad(is_grads_batched=True) knows torch's own ops only.
            if torch._C._functorch.is_legacy_batchedtensor(x):
                return resample_to(x, taps, up, down, before, size, flip)
            return _TransformableResample.apply(x, taps, up, down, before, size, flip)
        # Dynamo refuses a Function that defines jvp or vmap, and every Function inside torch.func.
        if torch._C._are_functorch_transforms_active():
            return resample_to(x, taps, up, down, before, size, flip)
        return _Resample.apply(x, taps, up, down, before, size, flip)
    return _backend.op(_OP)(x, taps, up, down, before, size, flip)


class _Resample(torch.autograd.Function):
    """Reverse mode."""

    @staticmethod
    def forward(x: Tensor, taps: Tensor, up: int, down: int, before: int, size: list[int], flip: bool) -> Tensor:
        return _backend.op(_OP)(x, taps, up, down, before, size, flip)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, taps, *ctx.settings = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(taps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (taps,) = ctx.saved_tensors
        up, down, before, _, flip = ctx.settings
        grad_x = _resample(grads[0], taps, down, up, taps.shape[0] - 1 - before, list(ctx.size), not flip)
        return grad_x, None, None, None, None, None, None


class _TransformableResample(_Resample):
    """The same with forward mode and vmap."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Resample.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])
        ctx.set_materialize_grads(False)  # else taps without a tangent have one of zeros

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 7
        return _Resample.backward(ctx, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        dx, dtaps, *_ = tangents
        if dx is None or dtaps is not None:
            _checks.wrong_value(_OP, "taps", "have no tangent", "taps that do")
        return _resample(dx, *ctx.saved_tensors, *ctx.settings)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        """The mapped dimension joins the batch."""
        x, taps, *settings = args
        if in_dims[1] is not None:
            _checks.wrong_value(_OP, "taps", "not be mapped by vmap", "taps that are")
        out = _resample(x.movedim(in_dims[0], 0).flatten(0, 1), taps, *settings)
        return out.unflatten(0, (info.batch_size, -1)), 0

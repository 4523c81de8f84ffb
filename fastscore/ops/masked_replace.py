"""Known elements of a state are replaced by those of an image noised to its time, in one pass over the data."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import needs_function

_OP = "masked_replace_"


def masked_replace_(
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Overwrites x with a known + s z where the mask is True, and returns it; z is given, or drawn, or left out.

    With (a, s) the (alpha, sigma) of a time this is the imputation step of score-based inpainting (Song et al. 2021,
    "Score-based generative modeling through SDEs", appendix I.2).

    Args:
        x: (B, ...), float32, float64, bfloat16 or float16; any memory format.
        known: of the shape, dtype and device of `x`, with which it may not overlap in part. Anything may stand where
            the mask is False.
        mask: bool, of the shape of `x` and on its device.
        coefficients: [a, s], shape (2,) or one row per sample (B, 2); float32, or float64 where `x` is float64; on the
            device of `x`.
        noise: z, of the shape and dtype of `x`.
        rng: int64 [2] = (seed, draw), and
        samples: int64 [B], the index of the sample in each row: z is drawn as `fastscore.noise` specifies. Without
            `noise`, `rng` and `samples` there is no noise, and s is not used.

    Returns:
        `x`. Sums are in the dtype of `coefficients`, rounded once. Noise of weight s = 0 is not looked at.

    Where a derivative is taken, in reverse or forward mode, the plain formula of `fastscore.reference` runs.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _checks.is_state(_OP, "x", x)
    _checks.matches(_OP, "known", known, x)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        _checks.wrong_type(_OP, "mask", "be a bool tensor", getattr(mask, "dtype", type(mask).__name__))
    if mask.shape != x.shape:
        _checks.wrong_value(_OP, "mask", f"have the shape of x, {tuple(x.shape)}", tuple(mask.shape))
    _checks.same_device(_OP, "mask", mask, x)
    _checks.coefficients(_OP, coefficients, x, 2, "[a, s]")
    _checks.noise_source(_OP, x, noise, rng, samples)
    if _backend.reference_asked(x.device) or needs_function(x, known, coefficients, noise):
        out = reference.masked_replace(x, known, mask, coefficients, noise=noise, rng=rng, samples=samples)
        return x.copy_(out)
    _backend.op(_OP)(x, known, mask, coefficients, noise, rng, samples)
    return x

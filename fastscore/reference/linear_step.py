"""One step of a fixed-step sampler, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore.reference._strides import with_strides_of
from fastscore.reference.philox import philox_normal


def linear_step(
    x: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Computes a x + sum_k b_k h_k + s z; arguments as in `fastscore.ops.linear_step`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = coefficients.reshape(-1, coefficients.shape[-1])
    column = [rows[:, k].reshape(-1, *[1] * (x.dim() - 1)) for k in range(rows.shape[1])]  # each (B or 1, 1, ...)
    out = column[0] * x.to(dtype)
    for b, h in zip(column[1:-1], history, strict=True):
        out = out + b * h.to(dtype)
    if noise is None and rng is not None and samples is not None:
        noise = philox_normal(x.shape, rng, samples, dtype, x.device)
    if noise is not None:
        s = column[-1]
        out = out + torch.where(s == 0, 0, s * noise.to(dtype))  # noise of weight zero may be anything
    return with_strides_of(x, out.to(x.dtype))

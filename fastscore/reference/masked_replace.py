"""Known elements of a state are replaced by those of a noised image, in plain PyTorch."""

import torch
from torch import Tensor

from fastscore.reference.philox import philox_normal


def masked_replace(
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    *,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> Tensor:
    """Computes a known + s z where the mask is True, x elsewhere; arguments as in `fastscore.ops.masked_replace_`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    a, s = coefficients.reshape(-1, 2, *[1] * (x.dim() - 1)).unbind(1)  # each (B or 1, 1, ...)
    value = a * known.to(dtype)
    if noise is None and rng is not None and samples is not None:
        noise = philox_normal(x.shape, rng, samples, dtype, x.device)
    if noise is not None:
        value = value + torch.where(s == 0, 0, s * noise.to(dtype))  # noise of weight zero may be anything
    return torch.where(mask, value.to(x.dtype), x)

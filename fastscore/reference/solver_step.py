"""One step of a sampler that clamps or keeps a prediction made of the network output, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore.reference._strides import with_strides_of
from fastscore.reference.philox import philox_normal


def solver_step(
    x: Tensor,
    h: Tensor,
    history: Sequence[Tensor],
    coefficients: Tensor,
    *,
    exponent: Tensor | None = None,
    noise: Tensor | None = None,
    rng: Tensor | None = None,
    samples: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes a x + b_0 m + sum_k b_k m_k + w z and m; arguments as in `fastscore.ops.solver_step`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    columns = coefficients.reshape(-1, coefficients.shape[-1], *[1] * (x.dim() - 1))
    p, q, c, a, b, *earlier, s, e = columns.unbind(1)  # each (B or 1, 1, ...)
    state = x.to(dtype)
    raw = p * state + q * h.to(dtype)
    # torch.clamp splits the derivative at the bounds between an element and a bound that is a tensor.
    m = torch.where(raw > c, c, torch.where(raw < -c, -c, raw))
    out = a * state + b * m
    for weight, kept in zip(earlier, history, strict=True):
        out = out + weight * kept.to(dtype)
    if noise is None and rng is not None and samples is not None:
        noise = philox_normal(x.shape, rng, samples, dtype, x.device)
    if noise is not None:
        w = s if exponent is None else s * torch.exp(e * exponent.to(dtype))
        out = out + torch.where(s == 0, 0, w * noise.to(dtype))  # noise of weight zero may be anything
    return with_strides_of(x, out.to(x.dtype)), with_strides_of(x, m.to(x.dtype))

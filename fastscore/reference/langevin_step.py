"""One step of the Langevin corrector, in plain PyTorch."""

import torch
from torch import Tensor

from fastscore.reference._strides import with_strides_of
from fastscore.reference.philox import philox_normal


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
    """Langevin step x + step g + sqrt(2 step) z with g = p x + q h; arguments as in `fastscore.ops.langevin_step`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = coefficients.reshape(-1, 3, *[1] * (x.dim() - 1))
    p, q, tau = rows.unbind(1)  # each (B or 1, 1, ...)
    if noise is None:
        if rng is None or samples is None:
            raise ValueError("langevin_step: noise must be given, or rng and samples")
        noise = philox_normal(x.shape, rng, samples, dtype, x.device)
    state, z = x.to(dtype), noise.to(dtype)
    g = p * state + q * h.to(dtype)
    norm_z, norm_g = _norms(z, per_sample), _norms(g, per_sample)
    still = norm_g == 0  # no direction: the step is zero
    ratio = torch.where(still, 0, norm_z / torch.where(still, 1, norm_g))
    # sqrt(2 step) = sqrt(2 tau) ratio has a derivative where the ratio is zero
    out = state + tau * ratio.square() * g + (2 * tau).sqrt() * ratio * z
    return with_strides_of(x, out.to(x.dtype))


def _norms(v: Tensor, per_sample: bool) -> Tensor:
    """L2 norm of each sample (B, 1, ...), or the mean of them (1, 1, ...)."""
    flat = v.flatten(1) if v.dim() > 1 else v.unsqueeze(1)
    norms = torch.linalg.vector_norm(flat, dim=1).reshape(-1, *[1] * (v.dim() - 1))
    return norms if per_sample else norms.sum(0, keepdim=True) / max(v.shape[0], 1)

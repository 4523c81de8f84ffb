"""The scaled error norm of adaptive solvers, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def error_norm(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    atol: float,
    rtol: float,
    kind: str = "sum",
) -> Tensor:
    """Root mean square of (sum_k c_k t_k) / scale over each sample; arguments as in `fastscore.ops.error_norm`."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    rows = coefficients.reshape(-1, coefficients.shape[-1])
    column = [rows[:, k].reshape(-1, *[1] * (u.dim() - 1)) for k in range(rows.shape[1])]  # each (B or 1, 1, ...)
    error = torch.zeros((), dtype=dtype, device=u.device)
    for c, term in zip(column, terms, strict=True):
        error = error + c * term.to(dtype)
    size = rtol * torch.maximum(u.to(dtype).abs(), v.to(dtype).abs())
    scale = size.clamp_min(atol) if kind == "max" else atol + size
    # No error is none at any scale; 0 * scale is NaN where the scale is not finite, which would make the ratio small.
    ratio = torch.where(error == 0, 0, error / scale) + 0 * scale
    squares = ratio.to(torch.float64).square()
    squares = squares.flatten(1) if u.dim() > 1 else squares.unsqueeze(1)
    return (squares.sum(1) / max(squares.shape[1], 1)).sqrt().to(dtype)

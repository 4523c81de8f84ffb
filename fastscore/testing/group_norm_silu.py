"""What tests, benchmarks and predictions of group_norm_silu share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def eager(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """What networks do without this op: one PyTorch operator after the other, in the dtype of x."""
    pixels = (..., *[None] * (x.dim() - 2))
    if add is not None:
        x = x + add[pixels]
    x = torch.group_norm(x, num_groups, weight, bias, eps)
    if scale is not None:
        x = x * (1 + scale[pixels])
    if shift is not None:
        x = x + shift[pixels]
    return F.silu(x) if silu else x

"""GroupNorm as a gain and an offset per sample and channel, in plain PyTorch.

With the mean and variance of x over each group of channels of each sample (Wu & He 2018, eqs. 1, 2, 6 and 7), and the
scale and shift of adaptive GroupNorm (Dhariwal & Nichol 2021, section 3.1),

    (weight (x - mean) / sqrt(var + eps) + bias) (1 + scale) + shift = gain x + offset
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_affine_into(
    x: Tensor,
    groups: int,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    strips: Tensor | None,
    strip_rows: int,
    gain: Tensor,
    offset: Tensor,
) -> None:
    """Writes gain and offset (B, C) of x (B, C, H, W); weight and bias are (C,), scale and shift (B, C).

    strips: (B, ceil(H / strip_rows), 3, C), what `conv3x3_winograd_into` has found when it wrote x; the kernels do not
    read x then.
    """
    per_group = x.shape[1] // groups
    var, mean = (
        t.repeat_interleave(per_group, dim=1)
        for t in torch.var_mean(x.reshape(x.shape[0], groups, -1), dim=2, correction=0)
    )
    a = torch.rsqrt(var + eps)
    a = a if weight is None else a * weight
    b = -a * mean
    b = b if bias is None else b + bias
    if scale is not None:
        a, b = a * (1 + scale), b * (1 + scale)
    gain.copy_(a)
    offset.copy_(b if shift is None else b + shift)

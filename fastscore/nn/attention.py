"""Self-attention over the pixels of an image, one head (Ho et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastscore.nn.layers import NIN, norm


class AttentionBlock(nn.Module):
    """x + attention(GroupNorm(x)): (B, C, H, W) -> the same. `skip_scale` multiplies the sum."""

    def __init__(self, channels: int, *, skip_scale: float = 1.0, init_scale: float = 0.0):
        super().__init__()
        self.GroupNorm_0 = norm(channels, silu=False)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, scale=init_scale)
        self.skip_scale = skip_scale

    def forward(self, x: Tensor) -> Tensor:
        rows = self.GroupNorm_0(x).flatten(2).transpose(1, 2)  # (B, HW, C): free of copies if channels-last
        query, key, value = self.NIN_0(rows), self.NIN_1(rows), self.NIN_2(rows)
        # written out: the fused attention of torch has no forward-mode derivative
        weight = torch.softmax(query @ key.transpose(1, 2) * x.shape[1] ** -0.5, dim=-1)
        update = self.NIN_3(weight @ value).transpose(1, 2).reshape(x.shape)
        return (x + update) * self.skip_scale

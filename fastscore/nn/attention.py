"""Self-attention over the pixels of an image, one head (Ho et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from fastscore.nn.layers import NIN, norm
from fastscore.ops import attention


class AttentionBlock(nn.Module):
    """x + attention(GroupNorm(x)): (B, C, H, W) -> the same. `skip_scale` multiplies the sum."""

    def __init__(
        self, channels: int, *, skip_scale: float = 1.0, init_scale: float = 0.0, num_groups: int | None = None
    ):
        super().__init__()
        self.GroupNorm_0 = norm(channels, silu=False, num_groups=num_groups)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, scale=init_scale)
        self.skip_scale = skip_scale

    def forward(self, x: Tensor) -> Tensor:
        rows = self.GroupNorm_0(x).flatten(2).transpose(1, 2)  # (B, HW, C): free of copies if channels-last
        query, key, value = (layer(rows).unsqueeze(1) for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        attended = attention(query, key, value).squeeze(1)
        update = self.NIN_3(attended).transpose(1, 2).reshape(x.shape)
        return (x + update) * self.skip_scale

"""Instance normalization that keeps the means of the channels (Song and Ermon 2019, arXiv 1907.05600, App. A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastscore._checks import accumulation_dtype
from fastscore.ops.group_norm_silu import group_norm_silu

_EPS = 1e-5


class InstanceNormPlus(nn.Module):
    """InstanceNorm++: gamma (InstanceNorm(x) + alpha m) + beta for x of shape (B, C, H, W).

    m (B, C) are the means of the channels over the pixels, normalized over the channels of a sample with the unbiased
    variance. gamma, alpha and beta have a value for each channel; with `num_classes`, as NCSN has it, also for each
    noise level: `embed.weight` holds them in this order, (num_classes, 3 C). Raises ValueError for a single channel.
    """

    def __init__(self, channels: int, num_classes: int | None = None):
        super().__init__()
        if channels < 2:
            raise ValueError(f"channels must be at least 2, to have a variance over them, got {channels}")
        self.conditional = num_classes is not None
        if num_classes is not None:
            self.embed = nn.Embedding(num_classes, 3 * channels)
            nn.init.normal_(self.embed.weight[:, : 2 * channels], 1.0, 0.02)
            nn.init.zeros_(self.embed.weight[:, 2 * channels :])
        else:
            self.alpha = nn.Parameter(nn.init.normal_(torch.empty(channels), 1.0, 0.02))
            self.gamma = nn.Parameter(nn.init.normal_(torch.empty(channels), 1.0, 0.02))
            self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """`labels` (B,) int64 are the noise levels; without num_classes nothing looks at them."""
        dtype = accumulation_dtype(x.dtype)
        channels = x.shape[1]
        means = x.mean((2, 3), dtype=dtype)
        means = means - means.mean(1, keepdim=True)
        means = means * (means.square().sum(1, keepdim=True) / (channels - 1) + _EPS).rsqrt()
        if not self.conditional:
            shift = self.gamma * (self.alpha * means) + self.beta
            return group_norm_silu(x, channels, self.gamma, shift=shift, eps=_EPS, silu=False)
        gamma, alpha, beta = self.embed(labels).to(dtype).chunk(3, 1)
        shift = gamma * (alpha * means) + beta
        return group_norm_silu(x, channels, scale=gamma - 1, shift=shift, eps=_EPS, silu=False)

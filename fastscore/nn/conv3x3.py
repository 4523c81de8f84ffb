"""3x3 convolution as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastscore.ops.conv3x3 import conv3x3


class Conv3x3(nn.Conv2d):
    """`torch.nn.Conv2d` with a kernel of 3, stride 1 and padding 1, by `fastscore.ops.conv3x3`; same state dict.

    Under autocast it is torch's convolution, which casts.

    Args:
        in_channels, out_channels: C, K.
        bias: whether there is one.

    Shapes: x (B, C, H, W) -> (B, K, H, W).
    Errors: those of `fastscore.ops.conv3x3`, when it is called.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return conv3x3(x, self.weight, self.bias)

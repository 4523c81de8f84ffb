"""Residual blocks of NCSN (Song and Ermon 2019, arXiv 1907.05600, App. A), with the key names of its checkpoints."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.nn.instance_norm_plus import InstanceNormPlus


class ConvMeanPool(nn.Module):
    """A convolution, then means of 2x2 pixels: (B, C, H, W) -> (B, C', H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(x), 2)


class DilatedResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after InstanceNorm++ and ELU, and a shortcut: (B, C, H, W) -> (B, C', H', W').

    `down` begins a level: the channels may change and the field of view doubles, by means of 2x2 pixels, or where there
    is `dilation` above 1 by that alone, at full size. Otherwise C' = C.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_classes: int | None, *, dilation: int = 1, down: bool = False
    ):
        super().__init__()

        def conv(channels: int) -> nn.Conv2d:
            return nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation)

        pooled = down and dilation == 1
        self.conv1 = conv(in_channels)
        self.normalize2 = InstanceNormPlus(in_channels, num_classes)
        self.conv2 = ConvMeanPool(in_channels, out_channels, 3) if pooled else conv(out_channels)
        self.shortcut: nn.Module | None = None
        if down:
            self.shortcut = ConvMeanPool(in_channels, out_channels, 1) if pooled else conv(out_channels)
        self.normalize1 = InstanceNormPlus(in_channels, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """`labels` are those of `InstanceNormPlus`."""
        h = self.conv1(F.elu(self.normalize1(x, labels)))
        h = self.conv2(F.elu(self.normalize2(h, labels)))
        return h + (x if self.shortcut is None else self.shortcut(x))

"""The blocks of RefineNet (Lin et al. 2017, arXiv 1611.06612) as NCSN has them (Song and Ermon 2019, arXiv 1907.05600).

ELU in place of ReLU. With `num_classes`, a conditional InstanceNorm++ precedes every convolution, and the chained
pooling takes means; without it (NCSNv2, arXiv 2006.09011), there is no norm in these blocks, and the pooling takes
maxima. The names of submodules are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.nn.instance_norm_plus import InstanceNormPlus


def _conv(in_channels: int, out_channels: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


class ResidualConvUnits(nn.Module):
    """`n_blocks` residual pairs of activation and convolution, one after the other: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, n_blocks: int, num_classes: int | None):
        super().__init__()
        self.stages = [[f"{block}_{stage}" for stage in (1, 2)] for block in range(1, n_blocks + 1)]
        self.normalized = num_classes is not None
        for stages in self.stages:
            for name in stages:
                if self.normalized:
                    self.add_module(f"{name}_norm", InstanceNormPlus(channels, num_classes))
                self.add_module(f"{name}_conv", _conv(channels, channels))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        for stages in self.stages:
            h = x
            for name in stages:
                if self.normalized:
                    h = getattr(self, f"{name}_norm")(h, labels)
                h = getattr(self, f"{name}_conv")(F.elu(h))
            x = x + h
        return x


class MultiResolutionFusion(nn.Module):
    """The sum of the inputs, each convolved, then resized bilinearly, corner to corner, to the size of the first.

    [(B, C_i, H_i, W_i)] -> (B, C, H_0, W_0).
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int | None):
        super().__init__()
        self.convs = nn.ModuleList(_conv(width, channels, bias=True) for width in in_channels)
        if num_classes is not None:
            self.norms = nn.ModuleList(InstanceNormPlus(width, num_classes) for width in in_channels)
        self.normalized = num_classes is not None

    def forward(self, xs: Sequence[Tensor], labels: Tensor) -> Tensor:
        if self.normalized:
            xs = [norm(x, labels) for norm, x in zip(self.norms, xs, strict=True)]
        out, *others = (conv(x) for conv, x in zip(self.convs, xs, strict=True))
        for h in others:
            if h.shape != out.shape:
                h = F.interpolate(h, out.shape[2:], mode="bilinear", align_corners=True)
            out = out + h
        return out


class ChainedResidualPooling(nn.Module):
    """ELU, and added to it a chain of two 5x5 poolings of stride 1, each with a convolution: shape-preserving."""

    def __init__(self, channels: int, num_classes: int | None):
        super().__init__()
        self.convs = nn.ModuleList(_conv(channels, channels) for _ in range(2))
        if num_classes is not None:
            self.norms = nn.ModuleList(InstanceNormPlus(channels, num_classes) for _ in range(2))
        self.normalized = num_classes is not None

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = path = F.elu(x)
        for i, conv in enumerate(self.convs):
            if self.normalized:
                path = F.avg_pool2d(self.norms[i](path, labels), 5, stride=1, padding=2)
            else:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            path = conv(path)
            x = x + path
        return x


class RefineBlock(nn.Module):
    """Joins the features of one level to those that come from below: [(B, C_i, H_i, W_i)] -> (B, C, H_0, W_0).

    A single input has `channels` channels already. `end`: three residual units at the output in place of one.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int | None, *, end: bool = False):
        super().__init__()
        self.adapt_convs = nn.ModuleList(ResidualConvUnits(width, 2, num_classes) for width in in_channels)
        self.output_convs = ResidualConvUnits(channels, 3 if end else 1, num_classes)
        self.msf = MultiResolutionFusion(in_channels, channels, num_classes) if len(in_channels) > 1 else None
        self.crp = ChainedResidualPooling(channels, num_classes)

    def forward(self, xs: Sequence[Tensor], labels: Tensor) -> Tensor:
        hs = [adapt(x, labels) for adapt, x in zip(self.adapt_convs, xs, strict=True)]
        h = hs[0] if self.msf is None else self.msf(hs, labels)
        return self.output_convs(self.crp(h, labels), labels)

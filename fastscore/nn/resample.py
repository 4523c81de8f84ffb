"""Resampling by two: nearest / average, or with an anti-aliasing FIR filter (Zhang 2019, arXiv 1904.11486)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.nn.layers import conv
from fastscore.ops import resample
from fastscore.ops.resample import MAX_TAPS


def fir_taps(kernel: Sequence[float]) -> Tensor:
    """The outer product of a 1-D filter with itself, normalized to sum 1: float32 (L, L).

    Raises:
        ValueError: the filter has fewer than 2 taps, or more than `fastscore.ops.resample` takes.
    """
    if not 2 <= len(kernel) <= MAX_TAPS:
        raise ValueError(f"fir_kernel must have 2 to {MAX_TAPS} taps, got {len(kernel)}")
    row = torch.tensor(kernel, dtype=torch.float64)
    taps = torch.outer(row, row)
    return (taps / taps.sum()).float()


class Resample(nn.Module):
    """What up- and downsampling share: the choice of filter, and the optional 3x3 convolution.

    The convolution is called `Conv2d_0` with a FIR filter and `Conv_0` without one, as in published checkpoints.
    """

    taps: Tensor | None
    gain = 1

    def __init__(
        self,
        in_channels: int | None = None,
        out_channels: int | None = None,
        *,
        with_conv: bool = False,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
    ):
        super().__init__()
        self.register_buffer("taps", self.gain * fir_taps(fir_kernel) if fir else None, persistent=False)
        self.conv_name = ("Conv2d_0" if fir else "Conv_0") if with_conv else None
        if self.conv_name is not None:
            assert in_channels is not None, "a convolution needs its number of channels"
            self.add_module(self.conv_name, self._conv(in_channels, out_channels or in_channels))

    def _conv(self, in_channels: int, out_channels: int) -> nn.Conv2d:
        return conv(in_channels, out_channels)


class Upsample(Resample):
    """(B, C, H, W) -> (B, C', 2H, 2W): nearest or FIR, then the convolution if there is one."""

    gain = 4  # of the four pixels in place of one, three are zero before the filter

    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        else:
            length = self.taps.shape[0]
            x = resample(x, self.taps, up=2, padding=((length + 1) // 2, (length - 2) // 2))
        return x if self.conv_name is None else getattr(self, self.conv_name)(x)


class Downsample(Resample):
    """(B, C, H, W) -> (B, C', H/2, W/2): 2x2 average or FIR; with a convolution, the convolution has the stride."""

    def _conv(self, in_channels: int, out_channels: int) -> nn.Conv2d:
        return conv(in_channels, out_channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        if self.taps is None:
            x = F.avg_pool2d(x, 2) if self.conv_name is None else F.pad(x, (0, 1, 0, 1))
        else:
            # in front of the 3x3 convolution, the filter also provides its border: H -> H + 1
            stride, extra = (2, -1) if self.conv_name is None else (1, 1)
            length = self.taps.shape[0] + extra
            x = resample(x, self.taps, down=stride, padding=(length // 2, (length - 1) // 2))
        return x if self.conv_name is None else getattr(self, self.conv_name)(x)

"""Resampling by two: nearest / average, or with an anti-aliasing FIR filter (Zhang 2019, arXiv 1904.11486).

The filters are depthwise convolutions, so they differentiate in both modes and keep the memory format of their input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.nn.layers import conv


def fir_taps(kernel: Sequence[float]) -> Tensor:
    """The outer product of a 1-D filter with itself, normalized to sum 1: float32 (L, L)."""
    row = torch.tensor(kernel, dtype=torch.float64)
    taps = torch.outer(row, row)
    return (taps / taps.sum()).float()


def _depthwise(taps: Tensor, x: Tensor) -> Tensor:
    return taps.to(x.dtype).expand(x.shape[1], 1, -1, -1)


def fir_filter(x: Tensor, taps: Tensor, *, padding: tuple[int, int], stride: int = 1) -> Tensor:
    """Zero-pad by `padding` (before, after) on both axes, convolve every channel with `taps`, keep every stride-th."""
    before, after = padding
    if before != after:
        x, before = F.pad(x, (before, after, before, after)), 0
    return F.conv2d(x, _depthwise(taps.flip(0, 1), x), stride=stride, padding=before, groups=x.shape[1])


def fir_downsample(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2): filter, then drop every second row and column."""
    extra = taps.shape[0] - 2
    return fir_filter(x, taps, padding=((extra + 1) // 2, extra // 2), stride=2)


def fir_upsample(x: Tensor, taps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): put a zero after every pixel, filter, multiply by 4 to keep the brightness."""
    # a transposed convolution is exactly that, without the multiplications by the zeros; it also gives the margin
    first = (taps.shape[0] - 2) // 2
    full = F.conv_transpose2d(x, 4 * _depthwise(taps, x), stride=2, groups=x.shape[1])
    return full[:, :, first : first + 2 * x.shape[2], first : first + 2 * x.shape[3]]


class Resample(nn.Module):
    """What up- and downsampling share: the choice of filter, and the optional 3x3 convolution.

    The convolution is called `Conv2d_0` with a FIR filter and `Conv_0` without one, as in published checkpoints.
    """

    taps: Tensor | None

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
        self.register_buffer("taps", fir_taps(fir_kernel) if fir else None, persistent=False)
        self.conv_name = ("Conv2d_0" if fir else "Conv_0") if with_conv else None
        if self.conv_name is not None:
            assert in_channels is not None, "a convolution needs its number of channels"
            self.add_module(self.conv_name, self._conv(in_channels, out_channels or in_channels))

    def _conv(self, in_channels: int, out_channels: int) -> nn.Conv2d:
        return conv(in_channels, out_channels)


class Upsample(Resample):
    """(B, C, H, W) -> (B, C', 2H, 2W): nearest or FIR, then the convolution if there is one."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest") if self.taps is None else fir_upsample(x, self.taps)
        return x if self.conv_name is None else getattr(self, self.conv_name)(x)


class Downsample(Resample):
    """(B, C, H, W) -> (B, C', H/2, W/2): 2x2 average or FIR; with a convolution, the convolution has the stride."""

    def _conv(self, in_channels: int, out_channels: int) -> nn.Conv2d:
        return conv(in_channels, out_channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_name is None:
            return F.avg_pool2d(x, 2) if self.taps is None else fir_downsample(x, self.taps)
        if self.taps is None:
            x = F.pad(x, (0, 1, 0, 1))
        else:  # the filter also provides the border of the 3x3 convolution: H -> H + 1
            extra = self.taps.shape[0]
            x = fir_filter(x, self.taps, padding=((extra + 1) // 2, extra // 2))
        return getattr(self, self.conv_name)(x)

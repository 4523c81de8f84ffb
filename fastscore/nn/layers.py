"""Convolutions, dense layers and norms as DDPM has them (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastscore.nn.conv3x3 import Conv3x3
from fastscore.nn.group_norm_silu import GroupNormSiLU


def variance_scaling_(weight: Tensor, scale: float, fan_in: int, fan_out: int) -> Tensor:
    """Fill `weight` uniformly with variance scale / mean(fan_in, fan_out); a scale of 0 means 1e-10, almost zero."""
    bound = math.sqrt(3 * max(scale, 1e-10) / ((fan_in + fan_out) / 2))
    with torch.no_grad():
        return weight.uniform_(-bound, bound)


def conv(
    in_channels: int,
    out_channels: int,
    size: int = 3,
    *,
    stride: int = 1,
    scale: float = 1.0,
    padding: int | None = None,
) -> nn.Conv2d:
    """A convolution that keeps the image size at stride 1; `padding=0` leaves the border to the caller."""
    padding = size // 2 if padding is None else padding
    plain = (size, stride, padding) != (3, 1, 1)
    layer = (
        nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=padding)
        if plain
        else Conv3x3(in_channels, out_channels)
    )
    variance_scaling_(layer.weight, scale, in_channels * size * size, out_channels * size * size)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def dense(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer."""
    layer = nn.Linear(in_features, out_features)
    variance_scaling_(layer.weight, 1.0, in_features, out_features)
    nn.init.zeros_(layer.bias)
    return layer


def norm(channels: int, *, silu: bool, num_groups: int | None = None, eps: float = 1e-6) -> GroupNormSiLU:
    """GroupNorm in `num_groups` (None: groups of four channels, at most 32 of them); then SiLU or not.

    Raises ValueError if the groups do not divide the channels.
    """
    groups = min(channels // 4, 32) if num_groups is None else num_groups
    if groups < 1 or channels % groups:
        widths = "4, and of 32 above 128 (two layers are joined on the way up)" if num_groups is None else groups
        raise ValueError(
            f"a layer of {channels} channels cannot be normalized in {groups} groups: choose the base width and its "
            f"multipliers so that all layers are multiples of {widths}"
        )
    return GroupNormSiLU(groups, channels, eps=eps, silu=silu)


class NIN(nn.Module):
    """A 1x1 convolution kept as a matrix, `W` (in, out) and `b` (out): the "network in network" of DDPM.

    Takes and returns pixels in rows: (..., in) -> (..., out).
    """

    def __init__(self, in_channels: int, out_channels: int, scale: float = 1.0):
        super().__init__()
        self.W = nn.Parameter(
            variance_scaling_(torch.empty(in_channels, out_channels), scale, in_channels, out_channels)
        )
        self.b = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W + self.b

"""Residual blocks of NCSN++ and DDPM++ (Song et al. 2021, arXiv 2011.13456, App. H)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastscore.nn.layers import NIN, conv, dense, norm


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions with the time embedding between them, and a shortcut.

    (B, C, H, W), (B, E) -> (B, C', H', W').

    kind "biggan": a `resample` by two sits in both branches (Brock et al. 2019), and the shortcut is a 1x1 convolution
    `Conv_2`; "ddpm": the image size stays, and the shortcut is a matrix `NIN_0`. Either is there only where the shape
    changes. `skip_scale` multiplies the sum of both branches. `num_groups` is that of `fastscore.nn.layers.norm`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int | None,
        *,
        kind: str = "biggan",
        resample: nn.Module | None = None,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        init_scale: float = 0.0,
        num_groups: int | None = None,
    ):
        super().__init__()
        self.GroupNorm_0 = norm(in_channels, silu=True, num_groups=num_groups)
        self.Conv_0 = conv(in_channels, out_channels)
        if embedding is not None:
            self.Dense_0 = dense(embedding, out_channels)
        self.GroupNorm_1 = norm(out_channels, silu=True, num_groups=num_groups)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = conv(out_channels, out_channels, scale=init_scale)
        self.resample: Callable[[Tensor], Tensor] | None = resample
        self.shortcut: str | None = None
        if kind == "ddpm" and in_channels != out_channels:
            self.shortcut, self.NIN_0 = "NIN_0", NIN(in_channels, out_channels)
        elif kind == "biggan" and (in_channels != out_channels or resample is not None):
            self.shortcut, self.Conv_2 = "Conv_2", conv(in_channels, out_channels, 1)
        self.skip_scale = skip_scale

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """`embedding` is the activated time embedding, SiLU(e); None if the network has no time."""
        h = self.GroupNorm_0(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h)
        h = self.GroupNorm_1(h, add=None if embedding is None else self.Dense_0(embedding))
        h = self.Conv_1(self.Dropout_0(h))
        if self.shortcut == "Conv_2":
            x = self.Conv_2(x)
        elif self.shortcut == "NIN_0":
            x = self.NIN_0(x.movedim(1, -1)).movedim(-1, 1)
        return (x + h) * self.skip_scale

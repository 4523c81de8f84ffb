"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239, App. B) as in DDIM (Song et al. 2021, arXiv 2010.02502).

It differs from score_sde's DDPM (`fastscore.models.ncsnpp`) in the attention blocks on the way up: one after every
residual block of an attended level, not one a level. State-dict keys are those of its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.nn.attention import ConvAttentionBlock
from fastscore.nn.layers import conv, dense, norm
from fastscore.nn.time_embedding import positional_embedding


@dataclass(frozen=True)
class DDIMConfig(NetworkConfig):
    """Everything that shapes the network; the names are those of the published configurations.

    image_size, in_channels, out_ch: (B, in_channels, image_size, image_size) -> (B, out_ch, image_size, image_size).
    ch, ch_mult, num_res_blocks: level i has ch * ch_mult[i] channels at image_size / 2^i and that many residual blocks;
        all multiples of 32.
    attn_resolutions: the image sizes with self-attention (the bottleneck always has one).
    """

    architecture: ClassVar[str] = "ddim"

    image_size: int = 32
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self._make_tuples("ch_mult", "attn_resolutions")
        self._check_integers("image_size", "in_channels", "out_ch", "ch", "num_res_blocks")
        self._check_levels("ch_mult", self.image_size)
        self._check_dropout(self.dropout)


class ResnetBlock(nn.Module):
    """Two normalized 3x3 convolutions, the time between them, a shortcut: (B, C, H, W), (B, 4 ch) -> (B, C', H, W)."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1 = norm(in_channels, silu=True, num_groups=32)
        self.conv1 = conv(in_channels, out_channels)
        self.temb_proj = dense(embedding, out_channels)
        self.norm2 = norm(out_channels, silu=True, num_groups=32)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, scale=0.0)
        self.nin_shortcut = conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` is the activated time embedding, SiLU(e)."""
        h = self.conv1(self.norm1(x))
        h = self.norm2(h, add=self.temb_proj(embedding))
        h = self.conv2(self.dropout(h))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a strided 3x3 convolution with one row and column of zeros at the end."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """The blocks at one image size, each with its attention, and the step to the next size."""

    def __init__(self, blocks: list[ResnetBlock], attentions: list[ConvAttentionBlock]):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attentions)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def step(self, n: int, h: Tensor, embedding: Tensor) -> Tensor:
        """The n-th block."""
        h = self.block[n](h, embedding)
        return self.attn[n](h) if len(self.attn) else h


class Bottleneck(nn.Module):
    """The blocks at the smallest image size."""

    def __init__(self, channels: int, embedding: int, dropout: float):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, embedding, dropout)
        self.attn_1 = ConvAttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, embedding, dropout)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.attn_1(self.block_1(h, embedding))
        return self.block_2(h, embedding)


class TimeEmbedding(nn.Module):
    """SiLU of two dense layers over the sinusoids of the timestep: (B,) -> (B, 4 ch)."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features
        self.dense = nn.ModuleList([dense(features, 4 * features), dense(4 * features, 4 * features)])

    def forward(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        embedding = positional_embedding(labels, self.features, dtype)
        for layer in self.dense:
            embedding = F.silu(layer(embedding))
        return embedding


class DDIMUNet(ScoreNetwork):
    """(B, C, H, W) images in [-1, 1] and (B,) timesteps -> (B, out_ch, H, W): the noise, as published."""

    config_type = DDIMConfig
    config: DDIMConfig

    def __init__(self, config: DDIMConfig):
        super().__init__()
        self.config = c = config
        width = 4 * c.ch

        def level(index: int, widths: list[int]) -> Level:
            out = c.ch * c.ch_mult[index]
            attended = len(widths) if c.image_size >> index in c.attn_resolutions else 0
            blocks = [ResnetBlock(channels, out, width, c.dropout) for channels in widths]
            return Level(blocks, [ConvAttentionBlock(out) for _ in range(attended)])

        self.temb = TimeEmbedding(c.ch)
        self.conv_in = conv(c.in_channels, c.ch)

        channels, skips = c.ch, [c.ch]
        down: list[Level] = []
        for index, multiplier in enumerate(c.ch_mult):
            out = c.ch * multiplier
            down.append(level(index, [channels] + [out] * (c.num_res_blocks - 1)))
            channels = out
            skips += [channels] * c.num_res_blocks
            if index + 1 < len(c.ch_mult):
                down[-1].downsample = Downsample(channels)
                skips.append(channels)

        self.down = nn.ModuleList(down)
        self.mid = Bottleneck(channels, width, c.dropout)

        up: list[Level] = []
        for index, multiplier in reversed(list(enumerate(c.ch_mult))):
            widths = []
            for _ in range(c.num_res_blocks + 1):
                widths.append(channels + skips.pop())
                channels = c.ch * multiplier
            up.append(level(index, widths))
            if index > 0:
                up[-1].upsample = Upsample(channels)
        self.up = nn.ModuleList(reversed(up))  # by level, as in `down`

        self.norm_out = norm(channels, silu=True, num_groups=32)
        self.conv_out = conv(channels, c.out_ch, scale=0.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.config.in_channels, self.config.image_size, self.config.image_size

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check_input(x, labels)
        embedding = self.temb(labels, x.dtype)

        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            assert isinstance(level, Level)
            for n in range(len(level.block)):
                h = level.step(n, h, embedding)
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h)
                skips.append(h)

        h = self.mid(h, embedding)

        for level in reversed(self.up):
            assert isinstance(level, Level)
            for n in range(len(level.block)):
                h = level.step(n, torch.cat([h, skips.pop()], dim=1), embedding)
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(self.norm_out(h))

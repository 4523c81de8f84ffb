"""NCSN++, DDPM++ and DDPM as in score_sde (Song et al. 2021, arXiv 2011.13456, Appendix H): one U-Net with options.

State-dict keys are those of the published checkpoints: `all_modules.{i}.…` in order of construction, and `sigmas`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.nn.attention import AttentionBlock
from fastscore.nn.group_norm_silu import GroupNormSiLU
from fastscore.nn.layers import conv, dense, norm
from fastscore.nn.resample import Downsample, Resample, Upsample
from fastscore.nn.residual_block import ResidualBlock
from fastscore.nn.time_embedding import GaussianFourierProjection, positional_embedding

_CHOICES = {
    "resblock_type": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional"),
}


@dataclass(frozen=True)
class NCSNppConfig(NetworkConfig):
    """Everything that shapes the network; the names are those of the published configurations.

    image_size, num_channels: of the data, (B, num_channels, image_size, image_size).
    nf, ch_mult, num_res_blocks: level i has nf * ch_mult[i] channels at image_size / 2^i and that many residual blocks.
    attn_resolutions: the image sizes with self-attention (the bottleneck always has one).
    resblock_type: "biggan" (resampling inside the blocks) or "ddpm" (between them, with a convolution if
        `resamp_with_conv`).
    fir, fir_kernel: anti-aliased resampling by this 1-D filter.
    num_groups: of every normalization; None: groups of four channels, at most 32 of them.
    attended_groups: None: no difference; else the groups in the attention of levels (not of the bottleneck), and in the
        first normalization of their blocks on the way up: diffusers has 32 there however narrow they are.
    skip_rescale: divide sums of two branches by sqrt(2).
    progressive, progressive_input, progressive_combine: the output and input pyramids ("output_skip" / "input_skip":
        images added or concatenated at every level; "residual": convolved features).
    embedding_type: "positional" (labels are 999 t or an index) or "fourier" (labels are sigma; its width in
        `fourier_scale`); conditional=False leaves the time out.
    scale_by_sigma: divide the output by sigma (the label with "fourier", else `sigmas[label]`).
    centered: the data lie in [-1, 1]; False: in [0, 1], and the network maps them to [-1, 1].
    sigma_min, sigma_max, num_scales: the descending buffer `sigmas`.
    """

    architecture: ClassVar[str] = "ncsnpp"

    image_size: int = 32
    num_channels: int = 3
    nf: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    resamp_with_conv: bool = True
    fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    skip_rescale: bool = True
    resblock_type: str = "biggan"
    progressive: str = "none"
    progressive_input: str = "residual"
    progressive_combine: str = "sum"
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    init_scale: float = 0.0
    scale_by_sigma: bool = True
    centered: bool = False
    conditional: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    num_groups: int | None = None
    attended_groups: int | None = None

    def __post_init__(self) -> None:
        self._make_tuples("ch_mult", "attn_resolutions", "fir_kernel")
        self._check_choices(_CHOICES)
        self._check_integers("image_size", "num_channels", "nf", "num_res_blocks", "num_scales")
        self._check_integers(*(name for name in ("num_groups", "attended_groups") if getattr(self, name) is not None))
        if self.num_groups is None and self.nf < 4:
            raise ValueError(f"nf must be at least 4 (a normalization group has 4 channels), got {self.nf}")
        self._check_levels("ch_mult", self.image_size)
        self._check_dropout(self.dropout)
        if self.fir and len(self.fir_kernel) < 2:
            raise ValueError(f"fir_kernel must have at least 2 taps, got {self.fir_kernel}")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )


class Combine(nn.Module):
    """Join an image of the input pyramid to the features: a 1x1 convolution of it, then sum or concatenation."""

    def __init__(self, image_channels: int, channels: int, method: str):
        super().__init__()
        self.Conv_0 = conv(image_channels, channels, 1)
        self.method = method

    def forward(self, image: Tensor, h: Tensor) -> Tensor:
        image = self.Conv_0(image)
        return image + h if self.method == "sum" else torch.cat([image, h], dim=1)


class NCSNpp(ScoreNetwork):
    """The score network: (B, C, H, W) images and (B,) time labels -> (B, C, H, W), in the dtype of the images.

    What the labels and the output mean is set by training; published VE networks take sigma and return the score,
    published VP networks take 999 t and return the noise (`fastscore.score.Convention`).
    """

    config_type = NCSNppConfig
    config: NCSNppConfig
    sigmas: Tensor

    def __init__(self, config: NCSNppConfig):
        super().__init__()
        self.config = config
        ratio = math.log(config.sigma_min / config.sigma_max)
        sigmas = config.sigma_max * torch.exp(torch.linspace(0, 1, config.num_scales, dtype=torch.float64) * ratio)
        self.register_buffer("sigmas", sigmas)
        self.act = nn.SiLU()
        self.pyramid_up, self.pyramid_down = Upsample(**self._fir()), Downsample(**self._fir())
        # forward() takes these in the order in which they are made here; the index is part of the state-dict key
        self.all_modules = nn.ModuleList(self._make_modules())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.config.num_channels, self.config.image_size, self.config.image_size

    def _fir(self) -> dict[str, Any]:
        return {"fir": self.config.fir, "fir_kernel": self.config.fir_kernel}

    @property
    def _skip_scale(self) -> float:
        return 0.5**0.5 if self.config.skip_rescale else 1.0

    def _make_modules(self) -> list[nn.Module]:
        c = self.config
        made: list[nn.Module] = []
        width = 4 * c.nf if c.conditional else None

        def block(in_channels: int, out_channels: int, resample: type[Resample] | None = None) -> nn.Module:
            return ResidualBlock(
                in_channels,
                out_channels,
                width,
                kind=c.resblock_type,
                resample=None if resample is None else resample(**self._fir()),
                dropout=c.dropout,
                skip_scale=self._skip_scale,
                init_scale=c.init_scale,
                num_groups=c.num_groups,
            )

        def resampling(channels: int, resample: type[Resample]) -> nn.Module:
            if c.resblock_type == "biggan":
                return block(channels, channels, resample)
            return resample(channels, with_conv=c.resamp_with_conv, **self._fir())

        def attention(channels: int) -> nn.Module:
            return AttentionBlock(
                channels, skip_scale=self._skip_scale, init_scale=c.init_scale, num_groups=c.num_groups
            )

        def regroup(layer: nn.Module, level: int) -> nn.Module:
            if c.attended_groups is not None and self._size(level) in c.attn_resolutions:
                first = layer.GroupNorm_0
                assert isinstance(first, GroupNormSiLU)
                if first.num_channels % c.attended_groups:
                    raise ValueError(
                        f"attended_groups must divide the {first.num_channels} channels of an attended level, "
                        f"got {c.attended_groups}"
                    )
                first.num_groups = c.attended_groups
            return layer

        def to_image(channels: int, out_channels: int, scale: float) -> list[nn.Module]:
            return [norm(channels, silu=True, num_groups=c.num_groups), conv(channels, out_channels, scale=scale)]

        if c.embedding_type == "fourier":
            made += [GaussianFourierProjection(c.nf, c.fourier_scale)]
        if width is not None:
            made += [dense(2 * c.nf if c.embedding_type == "fourier" else c.nf, width), dense(width, width)]

        made += [conv(c.num_channels, c.nf)]
        channels, pyramid, skips = c.nf, c.num_channels, [c.nf]
        for level, multiplier in enumerate(c.ch_mult):
            for _ in range(c.num_res_blocks):
                made += [block(channels, c.nf * multiplier)]
                channels = c.nf * multiplier
                if self._size(level) in c.attn_resolutions:
                    made += [regroup(attention(channels), level)]
                skips.append(channels)
            if level + 1 < len(c.ch_mult):
                made += [resampling(channels, Downsample)]
                if c.progressive_input == "input_skip":
                    made += [Combine(pyramid, channels, c.progressive_combine)]
                    channels *= 2 if c.progressive_combine == "cat" else 1
                elif c.progressive_input == "residual":
                    made += [Downsample(pyramid, channels, with_conv=True, **self._fir())]
                    pyramid = channels
                skips.append(channels)

        made += [block(channels, channels), attention(channels), block(channels, channels)]

        pyramid = 0
        for level, multiplier in reversed(list(enumerate(c.ch_mult))):
            for _ in range(c.num_res_blocks + 1):
                made += [regroup(block(channels + skips.pop(), c.nf * multiplier), level)]
                channels = c.nf * multiplier
            if self._size(level) in c.attn_resolutions:
                made += [regroup(attention(channels), level)]
            if c.progressive == "output_skip":
                made += to_image(channels, c.num_channels, c.init_scale)
            elif c.progressive == "residual" and not pyramid:
                made += to_image(channels, channels, 1.0)
            elif c.progressive == "residual":
                made += [Upsample(pyramid, channels, with_conv=True, **self._fir())]
            pyramid = channels
            if level > 0:
                made += [resampling(channels, Upsample)]

        if c.progressive != "output_skip":
            made += to_image(channels, c.num_channels, c.init_scale)
        return made

    def _size(self, level: int) -> int:
        return self.config.image_size >> level

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        c = self.config
        self._check_input(x, labels)
        layers = iter(self.all_modules)

        def resampling(h: Tensor) -> Tensor:
            layer = next(layers)
            h = layer(h, embedding) if c.resblock_type == "biggan" else layer(h)
            return h

        # time
        if c.embedding_type == "fourier":
            embedding, sigma = next(layers)(labels.double().log()), labels
        else:
            embedding = positional_embedding(labels, c.nf, x.dtype)
            sigma = self.sigmas[labels.long()] if c.scale_by_sigma else labels
        if c.conditional:
            embedding = next(layers)(embedding.to(x.dtype))
            embedding = self.act(next(layers)(self.act(embedding)))  # every block starts from SiLU(e)
        else:
            embedding = None

        # down
        if not c.centered:
            x = 2 * x - 1
        pyramid, h = x, next(layers)(x)
        skips = [h]
        for level in range(len(c.ch_mult)):
            for _ in range(c.num_res_blocks):
                h = next(layers)(h, embedding)
                if self._size(level) in c.attn_resolutions:
                    h = next(layers)(h)
                skips.append(h)
            if level + 1 < len(c.ch_mult):
                h = resampling(h)
                if c.progressive_input == "input_skip":
                    pyramid = self.pyramid_down(pyramid)
                    h = next(layers)(pyramid, h)
                elif c.progressive_input == "residual":
                    h = pyramid = (next(layers)(pyramid) + h) * self._skip_scale
                skips.append(h)

        # bottom
        h = next(layers)(h, embedding)
        h = next(layers)(h)
        h = next(layers)(h, embedding)

        # up
        output: Tensor | None = None
        for level in reversed(range(len(c.ch_mult))):
            for _ in range(c.num_res_blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], dim=1), embedding)
            if self._size(level) in c.attn_resolutions:
                h = next(layers)(h)
            if c.progressive == "output_skip":
                image = self._to_image(layers, h)
                output = image if output is None else self.pyramid_up(output) + image
            elif c.progressive == "residual":
                if output is None:
                    output = self._to_image(layers, h)
                else:
                    h = output = (next(layers)(output) + h) * self._skip_scale
            if level > 0:
                h = resampling(h)

        out = output if c.progressive == "output_skip" else self._to_image(layers, h)
        assert out is not None
        if c.scale_by_sigma:
            out = out / sigma.to(x.dtype)[:, None, None, None]
        return out

    @staticmethod
    def _to_image(layers: Iterator[nn.Module], h: Tensor) -> Tensor:
        h = next(layers)(h)
        image: Tensor = next(layers)(h)
        return image

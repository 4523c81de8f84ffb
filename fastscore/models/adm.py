"""ADM, the U-Net of guided diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233, section 3 and App. A).

State-dict keys are those of the published checkpoints. Where no option asks for them, channels of a learned variance,
classes and scale-shift norms are left out, which gives the U-Net of improved diffusion (arXiv 2102.09672).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.nn import resample
from fastscore.nn.attention import MultiHeadAttentionBlock
from fastscore.nn.layers import conv, norm
from fastscore.nn.time_embedding import positional_embedding


@dataclass(frozen=True)
class ADMConfig(NetworkConfig):
    """Everything that shapes the network; the names are those of the published constructor.

    image_size, in_channels, out_channels: (B, in_channels, image_size, image_size) -> (B, out_channels, image_size,
        image_size); twice as many out as in where the variance is learned: first the noise, then the variance.
    model_channels, channel_mult, num_res_blocks: level i has model_channels * channel_mult[i] channels at
        image_size / 2^i and that many residual blocks; all multiples of 32.
    attention_resolutions: the factors of downsampling (1, 2, 4 ...) at which there is self-attention (the bottleneck
        always has it).
    num_classes: classes that the network is conditioned on; None: none.
    null_class: the last of them stands for no class, and for classes that are not given.
    num_heads, num_head_channels: heads of the attention, or the channels of each head in place of their number.
    use_scale_shift_norm: the embedding scales and shifts the second norm of a block; False: it is added before.
    resblock_updown: resampling inside the residual blocks; False: between them, with a convolution.
    use_new_attention_order: query, key and value come before the heads in the channels of their projection.
    """

    architecture: ClassVar[str] = "adm"

    image_size: int = 64
    in_channels: int = 3
    out_channels: int = 6
    model_channels: int = 192
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (2, 4, 8)
    dropout: float = 0.0
    num_classes: int | None = None
    null_class: bool = False
    num_heads: int = 1
    num_head_channels: int | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    def __post_init__(self) -> None:
        self._make_tuples("channel_mult", "attention_resolutions")
        self._check_integers("image_size", "in_channels", "out_channels", "model_channels", "num_res_blocks")
        given = [name for name in ("num_classes", "num_head_channels") if getattr(self, name) is not None]
        self._check_integers("num_heads", *given)
        self._check_levels("channel_mult", self.image_size, least=0.5)
        self._check_dropout(self.dropout)
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class must be False without num_classes, got True")

    @property
    def widths(self) -> list[int]:
        """Channels of the levels."""
        return [int(multiplier * self.model_channels) for multiplier in self.channel_mult]


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2) by a strided 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def _numbered(**layers: nn.Module) -> nn.ModuleDict:
    """Layers under the numbers that published state dicts give them: `_2=` becomes key "2"."""
    return nn.ModuleDict({name.removeprefix("_"): layer for name, layer in layers.items()})


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions with the embedding between them: (B, C, H, W), (B, E) -> (B, C', H', W').

    A `resample` by two sits in both branches. `scale_shift`: the embedding gives scale and shift of the second norm,
    normalized * (1 + scale) + shift; else it is added before that norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout: float,
        scale_shift: bool,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        self.in_layers = _numbered(_0=_norm(in_channels), _2=conv(in_channels, out_channels))
        self.emb_layers = _numbered(_1=nn.Linear(embedding, (2 if scale_shift else 1) * out_channels))
        self.out_layers = _numbered(
            _0=_norm(out_channels), _2=nn.Dropout(dropout), _3=conv(out_channels, out_channels, scale=0.0)
        )
        self.skip_connection = conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.resample = resample or nn.Identity()
        self.scale_shift = scale_shift

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` is the activated embedding, SiLU(e)."""
        h = self.in_layers["2"](self.resample(self.in_layers["0"](x)))
        embedded = self.emb_layers["1"](embedding)
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            h = self.out_layers["0"](h, scale=scale, shift=shift)
        else:
            h = self.out_layers["0"](h, add=embedded)
        h = self.out_layers["3"](self.out_layers["2"](h))
        return self.skip_connection(self.resample(x)) + h


class Stage(nn.ModuleList):
    """Layers in a row, of which residual blocks take the embedding."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
        return h


class ADM(ScoreNetwork):
    """(B, C, H, W) images in [-1, 1], (B,) timesteps, (B,) int64 classes `y` -> (B, out_channels, H, W).

    As published the output is the noise and, where the variance is learned, then its place between the two bounds, for
    `DDPMSampler(variance="learned_range")`; other samplers take the noise, `lambda x, t: network(x, t)[:, :3]`. Classes
    are needed exactly if the network was made with `num_classes`, and without `null_class`.
    """

    config_type = ADMConfig
    config: ADMConfig

    def __init__(self, config: ADMConfig):
        super().__init__()
        self.config = c = config
        width = 4 * c.model_channels
        self.time_embed = _numbered(_0=nn.Linear(c.model_channels, width), _2=nn.Linear(width, width))
        if c.num_classes is not None:
            self.label_emb = nn.Embedding(c.num_classes, width)

        def block(channels: int, out: int, resampling: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(
                channels, out, width, dropout=c.dropout, scale_shift=c.use_scale_shift_norm, resample=resampling
            )

        def attention(channels: int) -> MultiHeadAttentionBlock:
            heads, rest = (c.num_heads, 0) if c.num_head_channels is None else divmod(channels, c.num_head_channels)
            if rest:
                raise ValueError(
                    f"num_head_channels must divide the {channels} channels of an attended level, "
                    f"got {c.num_head_channels}"
                )
            return MultiHeadAttentionBlock(channels, heads, new_order=c.use_new_attention_order)

        def down(channels: int) -> nn.Module:
            return block(channels, channels, resample.Downsample()) if c.resblock_updown else Downsample(channels)

        def up(channels: int) -> nn.Module:
            return block(channels, channels, resample.Upsample()) if c.resblock_updown else Upsample(channels)

        channels = c.widths[0]
        stages, skips = [Stage([conv(c.in_channels, channels)])], [channels]
        for level, out in enumerate(c.widths):
            for _ in range(c.num_res_blocks):
                stages.append(Stage([block(channels, out), *([attention(out)] if self._attended(level) else [])]))
                channels = out
                skips.append(channels)
            if level + 1 < len(c.widths):
                stages.append(Stage([down(channels)]))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(stages)

        self.middle_block = Stage([block(channels, channels), attention(channels), block(channels, channels)])

        stages = []
        for level, out in reversed(list(enumerate(c.widths))):
            for _ in range(c.num_res_blocks + 1):
                stages.append(Stage([block(channels + skips.pop(), out)]))
                channels = out
                if self._attended(level):
                    stages[-1].append(attention(channels))
            if level > 0:
                stages[-1].append(up(channels))
        self.output_blocks = nn.ModuleList(stages)
        self.out = _numbered(_0=_norm(channels), _2=conv(channels, c.out_channels, scale=0.0))

    def _attended(self, level: int) -> bool:
        return 2**level in self.config.attention_resolutions

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.config.in_channels, self.config.image_size, self.config.image_size

    def forward(self, x: Tensor, labels: Tensor, y: Tensor | None = None) -> Tensor:
        self._check_input(x, labels)
        if y is None and self.config.num_classes is not None and self.config.null_class:
            y = torch.full(x.shape[:1], self.config.num_classes - 1, device=x.device)
        self._check_classes(x, y)
        sinusoids = positional_embedding(
            labels, self.config.model_channels, x.dtype, freq_shift=0, flip_sin_to_cos=True
        )
        embedding = self.time_embed["2"](F.silu(self.time_embed["0"](sinusoids)))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        embedding = F.silu(embedding)  # every block starts from it

        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out["2"](self.out["0"](h))

    def _check_classes(self, x: Tensor, y: Tensor | None) -> None:
        classes = self.config.num_classes
        if classes is None and y is not None:
            raise ValueError("y must be None: the network was made without num_classes")
        if classes is not None:
            if y is None:
                raise ValueError(f"y must be given: the network is conditioned on {classes} classes")
            if y.dtype != torch.int64:
                raise TypeError(f"y must be int64, classes from 0 to {classes - 1}, got {y.dtype}")
            if y.shape != x.shape[:1]:
                raise ValueError(f"y must have shape ({x.shape[0]},), one class for every sample, got {tuple(y.shape)}")


def _norm(channels: int) -> nn.Module:
    return norm(channels, silu=True, num_groups=32, eps=1e-5)

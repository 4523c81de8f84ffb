"""A classifier of noisy images: the way down of DDPM++, then the mean over the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.nn.layers import conv, dense, norm
from fastscore.nn.resample import Downsample
from fastscore.nn.residual_block import ResidualBlock
from fastscore.nn.time_embedding import positional_embedding


@dataclass(frozen=True)
class ClassifierConfig(NetworkConfig):
    """Everything that shapes the network.

    image_size, num_channels: of the images, (B, num_channels, image_size, image_size).
    num_classes: of the logits, (B, num_classes).
    nf, ch_mult, num_res_blocks: level i has nf * ch_mult[i] channels at image_size / 2^i and that many residual blocks.
    """

    architecture: ClassVar[str] = "classifier"

    image_size: int = 32
    num_channels: int = 3
    num_classes: int = 10
    nf: int = 32
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._make_tuples("ch_mult")
        self._check_integers("image_size", "num_channels", "num_classes", "num_res_blocks")
        self._check_integers("nf", least=4)
        self._check_levels("ch_mult", self.image_size)
        self._check_dropout(self.dropout)


class Classifier(ScoreNetwork):
    """(B, C, H, W) noisy images in [-1, 1] and (B,) times t in [0, 1] -> logits (B, num_classes).

    For `fastscore.control.ClassifierGuidance`, which tells it t by default.

    Source: the noisy classifier of Dhariwal and Nichol, arXiv 2105.05233, section 4, of the residual blocks of Song et
    al., arXiv 2011.13456, appendix H; pooled by the mean.
    """

    config_type = ClassifierConfig
    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = c = config
        width = 4 * c.nf
        self.time_0, self.time_1 = dense(c.nf, width), dense(width, width)
        self.input = conv(c.num_channels, c.nf)

        def block(channels: int, out: int, resample: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(channels, out, width, resample=resample, dropout=c.dropout, skip_scale=0.5**0.5)

        blocks, channels = [], c.nf
        for level, multiplier in enumerate(c.ch_mult):
            if level > 0:
                blocks.append(block(channels, channels, Downsample()))
            for _ in range(c.num_res_blocks):
                blocks.append(block(channels, c.nf * multiplier))
                channels = c.nf * multiplier
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(channels, silu=True)
        self.output = dense(channels, c.num_classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.config.num_channels, self.config.image_size, self.config.image_size

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check_input(x, labels)
        features = positional_embedding(999 * labels.double(), self.config.nf, x.dtype)
        embedding = F.silu(self.time_1(F.silu(self.time_0(features))))
        h = self.input(x)
        for block in self.blocks:
            h = block(h, embedding)
        return self.output(self.norm(h).mean((2, 3)))

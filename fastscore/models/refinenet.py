"""The network that NCSN and NCSNv2 share: a RefineNet whose deepest levels are dilated, not smaller."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fastscore.models.base import NetworkConfig, ScoreNetwork
from fastscore.nn.dilated_residual_block import DilatedResidualBlock
from fastscore.nn.instance_norm_plus import InstanceNormPlus
from fastscore.nn.refinenet import RefineBlock

# of the levels from the first down: their channels in units of nf, and their names in the published state dicts
_LEVELS = {
    4: {"1": 1, "2": 2, "3": 2, "4": 2},
    5: {"1": 1, "2": 2, "3": 2, "4": 4, "5": 4},
    6: {"1": 1, "2": 2, "3": 2, "31": 2, "4": 4, "5": 4},
}
# names of the blocks that take these levels from the last up
_REFINE = {4: ("1", "2", "3", "4"), 5: ("1", "2", "3", "4", "5"), 6: ("1", "2", "31", "3", "4", "5")}


@dataclass(frozen=True)
class RefineNetConfig(NetworkConfig):
    """What shapes an NCSN or an NCSNv2.

    image_size, num_channels: of the data, (B, num_channels, image_size, image_size).
    nf: channels of the first level (`ngf` where it was published).
    depth: number of levels: 4, 5 ("deeper") or 6 ("deepest"). Each but the first and the last two halves the image.
    num_scales: number of noise levels (`num_classes` where it was published); labels are their indices.
    centered: the data lie in [-1, 1]; False: in [0, 1], and the network maps them to [-1, 1].
    """

    image_size: int = 32
    num_channels: int = 3
    nf: int = 128
    depth: int = 4
    num_scales: int = 10
    centered: bool = False

    def __post_init__(self) -> None:
        self._check_integers("image_size", "num_channels", "num_scales")
        self._check_integers("nf", least=2)  # one channel alone has no variance over the channels
        if self.depth not in _LEVELS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _LEVELS))}, got {self.depth!r}")
        if self.image_size % (factor := 2 ** (self.depth - 3)):
            raise ValueError(f"image_size must be divisible by {factor} for depth {self.depth}, got {self.image_size}")


class RefineNet(ScoreNetwork):
    """(B, C, H, W) images and (B,) indices of noise levels -> (B, C, H, W).

    num_classes: the number of noise levels that every norm tells apart; None: the norms know nothing of them.
    """

    config: RefineNetConfig

    def __init__(self, config: RefineNetConfig, num_classes: int | None):
        super().__init__()
        self.config = c = config
        self.begin_conv = nn.Conv2d(c.num_channels, c.nf, 3, padding=1)
        self.normalizer = InstanceNormPlus(c.nf, num_classes)
        self.end_conv = nn.Conv2d(c.nf, c.num_channels, 3, padding=1)

        widths = [c.nf * width for width in _LEVELS[c.depth].values()]
        for index, name in enumerate(_LEVELS[c.depth]):
            dilation = {c.depth - 2: 2, c.depth - 1: 4}.get(index, 1)
            first, out = widths[max(index - 1, 0)], widths[index]
            blocks = [
                DilatedResidualBlock(first, out, num_classes, dilation=dilation, down=index > 0),
                DilatedResidualBlock(out, out, num_classes, dilation=dilation),
            ]
            self.add_module(f"res{name}", nn.ModuleList(blocks))

        refine = {}
        for index, name in enumerate(_REFINE[c.depth]):
            level = c.depth - 1 - index
            own, out, end = widths[level], widths[max(level - 1, 0)], level == 0
            refine[f"refine{name}"] = RefineBlock([own, own] if index else [own], out, num_classes, end=end)
        for key in sorted(refine):  # the published order
            self.add_module(key, refine[key])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.config.num_channels, self.config.image_size, self.config.image_size

    def _run(self, x: Tensor, labels: Tensor) -> Tensor:
        """The network from its first convolution to its last; `labels` are int64."""
        h = self.begin_conv(x if self.config.centered else 2 * x - 1)
        levels = []
        for name in _LEVELS[self.config.depth]:
            for block in getattr(self, f"res{name}"):
                h = block(h, labels)
            levels.append(h)

        inputs = [levels.pop()]
        for name in _REFINE[self.config.depth]:
            h = getattr(self, f"refine{name}")(inputs, labels)
            if levels:
                inputs = [levels.pop(), h]
        out: Tensor = self.end_conv(F.elu(self.normalizer(h, labels)))
        return out

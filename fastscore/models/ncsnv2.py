"""NCSNv2 (Song and Ermon 2020, arXiv 2006.09011, App. A): the noise level divides the output, and enters nowhere else.

State-dict keys are those of the checkpoints of ermongroup/ncsnv2 (NCSNv2, NCSNv2Deeper, NCSNv2Deepest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastscore.models.refinenet import RefineNet, RefineNetConfig
from fastscore.sde import VESDE


@dataclass(frozen=True)
class NCSNv2Config(RefineNetConfig):
    """`RefineNetConfig`, with `depth` 5 for NCSNv2Deeper and 6 for NCSNv2Deepest, and the noise levels.

    sigma_min, sigma_max: the ends of the buffer `sigmas`, num_scales noise levels, descending, evenly spaced in log.
    """

    architecture: ClassVar[str] = "ncsnv2"

    num_scales: int = 232
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        VESDE(self.sigma_min, self.sigma_max)  # refuses what is no range


class NCSNv2(RefineNet):
    """(B, C, H, W) images and (B,) indices of noise levels, descending -> (B, C, H, W): the score, as published."""

    config_type = NCSNv2Config
    sigmas: Tensor

    def __init__(self, config: NCSNv2Config):
        super().__init__(config, num_classes=None)
        self.register_buffer(
            "sigmas", VESDE(config.sigma_min, config.sigma_max).chain_sigmas(config.num_scales).flip(0)
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check_input(x, labels)
        labels = labels.long()
        return self._run(x, labels) / self.sigmas[labels].to(x.dtype)[:, None, None, None]

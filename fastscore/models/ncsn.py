"""NCSN, the noise-conditional score network of Song and Ermon 2019 (arXiv 1907.05600, App. A).

State-dict keys are those of the checkpoints of ermongroup/ncsn, and of NCSN and NCSNdeeper of ermongroup/ncsnv2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastscore.models.refinenet import RefineNet, RefineNetConfig


@dataclass(frozen=True)
class NCSNConfig(RefineNetConfig):
    """`RefineNetConfig`; `depth` 5 is NCSNdeeper."""

    architecture: ClassVar[str] = "ncsn"


class NCSN(RefineNet):
    """(B, C, H, W) images and (B,) indices of noise levels, descending -> (B, C, H, W): the score, as published.

    Every norm has its own scales and shifts for each noise level.
    """

    config_type = NCSNConfig

    def __init__(self, config: NCSNConfig):
        super().__init__(config, num_classes=config.num_scales)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self._check_input(x, labels)
        return self._run(x, labels.long())

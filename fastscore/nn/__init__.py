"""Modules over the fused ops."""

from fastscore.nn.conv3x3 import Conv3x3
from fastscore.nn.group_norm_silu import GroupNormSiLU

__all__ = ["Conv3x3", "GroupNormSiLU"]

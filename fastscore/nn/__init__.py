"""Modules over the fused ops."""

from fastscore.nn.group_norm_silu import GroupNormSiLU

__all__ = ["GroupNormSiLU"]

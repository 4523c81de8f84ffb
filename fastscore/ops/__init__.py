"""The fused ops: one public function each, differentiable, for every backend."""

from fastscore.ops.group_norm_silu import group_norm_silu
from fastscore.ops.linear_step import linear_step, linear_step_
from fastscore.ops.philox import philox_normal, philox_rademacher

__all__ = ["group_norm_silu", "linear_step", "linear_step_", "philox_normal", "philox_rademacher"]

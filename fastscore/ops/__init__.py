"""The fused ops: one public function each, for every backend; all but `error_norm` are differentiable."""

from fastscore.ops._cost import Cost, cost, size
from fastscore.ops.attention import attention
from fastscore.ops.conv3x3 import conv3x3
from fastscore.ops.error_norm import error_norm
from fastscore.ops.group_norm_silu import group_norm_silu
from fastscore.ops.hutchinson import hutchinson, hutchinson_probe
from fastscore.ops.langevin_step import langevin_step, langevin_step_
from fastscore.ops.linear_step import linear_step, linear_step_
from fastscore.ops.masked_replace import masked_replace_
from fastscore.ops.philox import philox_normal, philox_rademacher
from fastscore.ops.resample import resample
from fastscore.ops.solver_step import solver_step, solver_step_

__all__ = [
    "Cost",
    "attention",
    "conv3x3",
    "cost",
    "error_norm",
    "group_norm_silu",
    "hutchinson",
    "hutchinson_probe",
    "langevin_step",
    "langevin_step_",
    "linear_step",
    "linear_step_",
    "masked_replace_",
    "philox_normal",
    "philox_rademacher",
    "resample",
    "size",
    "solver_step",
    "solver_step_",
]

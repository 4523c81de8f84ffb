"""Every op in plain PyTorch, under its own name: the specification that all other versions are held to."""

from fastscore.reference.attention import attention
from fastscore.reference.conv3x3 import conv3x3
from fastscore.reference.error_norm import error_norm
from fastscore.reference.group_norm_silu import group_norm_silu
from fastscore.reference.hutchinson import hutchinson, hutchinson_probe
from fastscore.reference.langevin_step import langevin_step
from fastscore.reference.linear_step import linear_step
from fastscore.reference.masked_replace import masked_replace
from fastscore.reference.philox import philox_normal, philox_rademacher
from fastscore.reference.resample import resample
from fastscore.reference.solver_step import solver_step

__all__ = [
    "attention",
    "conv3x3",
    "error_norm",
    "group_norm_silu",
    "hutchinson",
    "hutchinson_probe",
    "langevin_step",
    "linear_step",
    "masked_replace",
    "philox_normal",
    "philox_rademacher",
    "resample",
    "solver_step",
]

"""Samplers the slow way: formula by formula, one PyTorch operation per term, as the papers print them.

The specification that the table engine is tested against. Nothing here comes from a table: at every step the SDE is
asked for its marginal, the network's output is turned into what the formula wants, and the update is written out.
"""

from fastscore.reference.samplers.adaptive import adaptive_sde_sampler, dpm_solver_adaptive, rk45_sampler
from fastscore.reference.samplers.consistency import consistency_sampler
from fastscore.reference.samplers.ddim import ddim_inverse_sampler, ddim_sampler
from fastscore.reference.samplers.ddpm import ddpm_sampler
from fastscore.reference.samplers.dpm_solver import dpm_solver_sampler
from fastscore.reference.samplers.edm import edm_sampler, euler_ancestral_sampler
from fastscore.reference.samplers.langevin import annealed_langevin_sampler, langevin_sampler
from fastscore.reference.samplers.linear_multistep import lms_sampler
from fastscore.reference.samplers.ode import ode_sampler, spaced_times
from fastscore.reference.samplers.score_sde import euler_maruyama_sampler, pc_sampler
from fastscore.reference.samplers.sde_dpm_solver import sde_dpm_solver_2s_sampler, sde_dpm_solver_sampler
from fastscore.reference.samplers.unipc import unipc_sampler

__all__ = [
    "adaptive_sde_sampler",
    "annealed_langevin_sampler",
    "consistency_sampler",
    "ddim_inverse_sampler",
    "ddim_sampler",
    "ddpm_sampler",
    "dpm_solver_adaptive",
    "dpm_solver_sampler",
    "edm_sampler",
    "euler_ancestral_sampler",
    "euler_maruyama_sampler",
    "langevin_sampler",
    "lms_sampler",
    "ode_sampler",
    "pc_sampler",
    "rk45_sampler",
    "sde_dpm_solver_2s_sampler",
    "sde_dpm_solver_sampler",
    "spaced_times",
    "unipc_sampler",
]

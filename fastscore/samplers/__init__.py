"""Samplers: tables of coefficients and the loop that runs them."""

from fastscore.samplers.adaptive import AdaptiveInfo, AdaptiveSampler, Trial
from fastscore.samplers.adaptive_sde import AdaptiveSDESampler
from fastscore.samplers.ancestral import EulerAncestralSampler
from fastscore.samplers.base import FixedStepSampler, SampleInfo, Sampler
from fastscore.samplers.consistency import ConsistencySampler
from fastscore.samplers.correctors import CORRECTORS
from fastscore.samplers.ddim import DDIMInverseSampler, DDIMSampler
from fastscore.samplers.ddpm import DDPMSampler
from fastscore.samplers.dpm_adaptive import DPMSolverAdaptive, PIDController
from fastscore.samplers.dpm_solver import DPMSolverSampler
from fastscore.samplers.edm import EDMSampler
from fastscore.samplers.euler_maruyama import EulerMaruyamaSampler
from fastscore.samplers.hooks import Hook, Moment
from fastscore.samplers.langevin import AnnealedLangevinSampler, LangevinSampler
from fastscore.samplers.linear_multistep import LMSSampler
from fastscore.samplers.loop import NonFiniteError
from fastscore.samplers.ode import ODE_METHODS, ODESampler
from fastscore.samplers.plan import Plan, Step
from fastscore.samplers.predictor_corrector import PCSampler
from fastscore.samplers.predictors import PREDICTORS
from fastscore.samplers.progressive import ProgressiveGeneration
from fastscore.samplers.registry import describe, names, sampler
from fastscore.samplers.rk45 import RK45Sampler
from fastscore.samplers.row_network import RowNetwork
from fastscore.samplers.sde_dpm_solver import SDEDPMSolver2SSampler, SDEDPMSolverSampler
from fastscore.samplers.thresholding import DynamicThresholding
from fastscore.samplers.unipc import UniPCSampler

__all__ = [
    "CORRECTORS",
    "ODE_METHODS",
    "PREDICTORS",
    "AdaptiveInfo",
    "AdaptiveSDESampler",
    "AdaptiveSampler",
    "AnnealedLangevinSampler",
    "ConsistencySampler",
    "DDIMInverseSampler",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverAdaptive",
    "DPMSolverSampler",
    "DynamicThresholding",
    "EDMSampler",
    "EulerAncestralSampler",
    "EulerMaruyamaSampler",
    "FixedStepSampler",
    "Hook",
    "LMSSampler",
    "LangevinSampler",
    "Moment",
    "NonFiniteError",
    "ODESampler",
    "PCSampler",
    "PIDController",
    "Plan",
    "ProgressiveGeneration",
    "RK45Sampler",
    "RowNetwork",
    "SDEDPMSolver2SSampler",
    "SDEDPMSolverSampler",
    "SampleInfo",
    "Sampler",
    "Step",
    "Trial",
    "UniPCSampler",
    "describe",
    "names",
    "sampler",
]

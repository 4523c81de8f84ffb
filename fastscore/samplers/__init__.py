"""Samplers: tables of coefficients and the loop that runs them."""

from fastscore.samplers.ancestral import EulerAncestralSampler
from fastscore.samplers.base import FixedStepSampler, SampleInfo, Sampler
from fastscore.samplers.consistency import ConsistencySampler
from fastscore.samplers.correctors import CORRECTORS
from fastscore.samplers.ddim import DDIMInverseSampler, DDIMSampler
from fastscore.samplers.ddpm import DDPMSampler
from fastscore.samplers.dpm_solver import DPMSolverSampler
from fastscore.samplers.edm import EDMSampler
from fastscore.samplers.euler_maruyama import EulerMaruyamaSampler
from fastscore.samplers.hooks import Hook, Moment
from fastscore.samplers.langevin import AnnealedLangevinSampler, LangevinSampler
from fastscore.samplers.loop import NonFiniteError
from fastscore.samplers.ode import ODE_METHODS, ODESampler
from fastscore.samplers.plan import Plan, Step
from fastscore.samplers.predictor_corrector import PCSampler
from fastscore.samplers.predictors import PREDICTORS
from fastscore.samplers.thresholding import DynamicThresholding

__all__ = [
    "CORRECTORS",
    "ODE_METHODS",
    "PREDICTORS",
    "AnnealedLangevinSampler",
    "ConsistencySampler",
    "DDIMInverseSampler",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverSampler",
    "DynamicThresholding",
    "EDMSampler",
    "EulerAncestralSampler",
    "EulerMaruyamaSampler",
    "FixedStepSampler",
    "Hook",
    "LangevinSampler",
    "Moment",
    "NonFiniteError",
    "ODESampler",
    "PCSampler",
    "Plan",
    "SampleInfo",
    "Sampler",
    "Step",
]

"""Samplers: tables of coefficients and the loop that runs them."""

from fastscore.samplers.base import FixedStepSampler, SampleInfo, Sampler
from fastscore.samplers.correctors import CORRECTORS
from fastscore.samplers.euler_maruyama import EulerMaruyamaSampler
from fastscore.samplers.hooks import Hook, Moment
from fastscore.samplers.loop import NonFiniteError
from fastscore.samplers.plan import Plan, Step
from fastscore.samplers.predictor_corrector import PCSampler
from fastscore.samplers.predictors import PREDICTORS
from fastscore.samplers.thresholding import DynamicThresholding

__all__ = [
    "CORRECTORS",
    "PREDICTORS",
    "DynamicThresholding",
    "EulerMaruyamaSampler",
    "FixedStepSampler",
    "Hook",
    "Moment",
    "NonFiniteError",
    "PCSampler",
    "Plan",
    "SampleInfo",
    "Sampler",
    "Step",
]

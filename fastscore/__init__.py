"""fastscore: fused kernels, samplers, likelihood and control for score-based and diffusion models."""

from fastscore import models, ops, samplers
from fastscore._backend import BackendUnavailableError, available_backends, backend
from fastscore.noise import Noise, PhiloxNoise, ReplayNoise, TorchNoise
from fastscore.samplers import (
    AdaptiveSDESampler,
    AnnealedLangevinSampler,
    ConsistencySampler,
    DDIMInverseSampler,
    DDIMSampler,
    DDPMSampler,
    DPMSolverAdaptive,
    DPMSolverSampler,
    EDMSampler,
    EulerAncestralSampler,
    EulerMaruyamaSampler,
    LangevinSampler,
    NonFiniteError,
    ODESampler,
    PCSampler,
    RK45Sampler,
    Sampler,
)
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention
from fastscore.sde import SDE, VESDE, VPSDE, SubVPSDE

__version__ = "0.1.0"
__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "AdaptiveSDESampler",
    "AnnealedLangevinSampler",
    "BackendUnavailableError",
    "ConsistencySampler",
    "Convention",
    "DDIMInverseSampler",
    "DDIMSampler",
    "DDPMSampler",
    "DPMSolverAdaptive",
    "DPMSolverSampler",
    "DiscreteVPSDE",
    "EDMSampler",
    "EulerAncestralSampler",
    "EulerMaruyamaSampler",
    "LangevinSampler",
    "Noise",
    "NonFiniteError",
    "ODESampler",
    "PCSampler",
    "PhiloxNoise",
    "RK45Sampler",
    "ReplayNoise",
    "Sampler",
    "SubVPSDE",
    "TorchNoise",
    "__version__",
    "available_backends",
    "backend",
    "models",
    "ops",
    "samplers",
]

"""fastscore: fused kernels, samplers, likelihood and control for score-based and diffusion models."""

from fastscore import models, ops, samplers
from fastscore._backend import BackendUnavailableError, available_backends, backend
from fastscore.accelerate import accelerate, restore
from fastscore.likelihood import Divergence, divergence
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
    LMSSampler,
    NonFiniteError,
    ODESampler,
    PCSampler,
    RK45Sampler,
    Sampler,
    SDEDPMSolver2SSampler,
    SDEDPMSolverSampler,
    UniPCSampler,
    sampler,
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
    "Divergence",
    "EDMSampler",
    "EulerAncestralSampler",
    "EulerMaruyamaSampler",
    "LMSSampler",
    "LangevinSampler",
    "Noise",
    "NonFiniteError",
    "ODESampler",
    "PCSampler",
    "PhiloxNoise",
    "RK45Sampler",
    "ReplayNoise",
    "SDEDPMSolver2SSampler",
    "SDEDPMSolverSampler",
    "Sampler",
    "SubVPSDE",
    "TorchNoise",
    "UniPCSampler",
    "__version__",
    "accelerate",
    "available_backends",
    "backend",
    "divergence",
    "models",
    "ops",
    "restore",
    "sampler",
    "samplers",
]

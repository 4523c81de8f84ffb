"""fastscore: fused kernels, samplers, likelihood and control for score-based and diffusion models."""

from fastscore.score import Convention
from fastscore.sde import SDE, VESDE, VPSDE, SubVPSDE

__version__ = "0.1.0"
__all__ = ["SDE", "VESDE", "VPSDE", "Convention", "SubVPSDE", "__version__"]

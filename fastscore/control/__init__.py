"""Generation under conditions without retraining: hooks that every sampler takes, and networks made of networks."""

from fastscore.control.colorization import Colorization
from fastscore.control.inpainting import Inpainting

__all__ = ["Colorization", "Inpainting"]

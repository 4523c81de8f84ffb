"""Generation under conditions without retraining: hooks that every sampler takes, and networks made of networks."""

from fastscore.control.classifier_free import ClassifierFreeGuidance
from fastscore.control.colorization import Colorization
from fastscore.control.dps import DPSGuidance
from fastscore.control.guidance import ClassifierGuidance, Expert, LogLikelihoodGuidance, ScoreGuidance
from fastscore.control.inpainting import Inpainting
from fastscore.control.linear_guidance import LinearGuidance
from fastscore.control.linear_operator import LinearOperator
from fastscore.control.linear_replacement import LinearReplacement
from fastscore.control.operators import averaging, grayscale, masking, matrix, random_projection
from fastscore.control.resampling import Resampling

__all__ = [
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Colorization",
    "DPSGuidance",
    "Expert",
    "Inpainting",
    "LinearGuidance",
    "LinearOperator",
    "LinearReplacement",
    "LogLikelihoodGuidance",
    "Resampling",
    "ScoreGuidance",
    "averaging",
    "grayscale",
    "masking",
    "matrix",
    "random_projection",
]

"""Generation under conditions without retraining: hooks that every sampler takes, and networks made of networks."""

from fastscore.control.classifier_free import ClassifierFreeGuidance
from fastscore.control.colorization import Colorization
from fastscore.control.guidance import ClassifierGuidance, Expert, LogLikelihoodGuidance, ScoreGuidance
from fastscore.control.inpainting import Inpainting
from fastscore.control.linear import LinearGuidance
from fastscore.control.operators import LinearOperator, averaging

__all__ = [
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Colorization",
    "Expert",
    "Inpainting",
    "LinearGuidance",
    "LinearOperator",
    "LogLikelihoodGuidance",
    "ScoreGuidance",
    "averaging",
]

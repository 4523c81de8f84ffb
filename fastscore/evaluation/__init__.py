"""How good samples are: distances between sets of images."""

from fastscore.evaluation.kid import kernel_distance

__all__ = ["kernel_distance"]

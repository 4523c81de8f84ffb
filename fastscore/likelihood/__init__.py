"""Likelihood: the divergence of vector fields."""

from fastscore.likelihood.divergence import Divergence, divergence

__all__ = ["Divergence", "divergence"]

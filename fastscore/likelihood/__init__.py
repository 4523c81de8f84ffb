"""Likelihood: the divergence of vector fields, the exact log-likelihood of data, and bits per dimension."""

from fastscore.likelihood.bits import BitsPerDim, bits_per_dim, dequantize
from fastscore.likelihood.divergence import Divergence, divergence
from fastscore.likelihood.log_likelihood import Likelihood, log_likelihood

__all__ = [
    "BitsPerDim",
    "Divergence",
    "Likelihood",
    "bits_per_dim",
    "dequantize",
    "divergence",
    "log_likelihood",
]

"""Likelihood: the divergence of vector fields, log-likelihood of data, bits per dimension, the variational bound."""

from fastscore.likelihood.bits import BitsPerDim, bits_per_dim, dequantize
from fastscore.likelihood.bound import VariationalBound, variational_bound
from fastscore.likelihood.divergence import Divergence, divergence
from fastscore.likelihood.log_likelihood import Likelihood, log_likelihood

__all__ = [
    "BitsPerDim",
    "Divergence",
    "Likelihood",
    "VariationalBound",
    "bits_per_dim",
    "dequantize",
    "divergence",
    "log_likelihood",
    "variational_bound",
]

"""Likelihood and codes: divergence, log-likelihood, bits per dimension, variational bound, latents of given images."""

from fastscore.likelihood.bits import BitsPerDim, bits_per_dim, dequantize
from fastscore.likelihood.bound import VariationalBound, variational_bound
from fastscore.likelihood.divergence import Divergence, divergence
from fastscore.likelihood.encoding import decode, encode
from fastscore.likelihood.interpolation import slerp
from fastscore.likelihood.log_likelihood import Likelihood, log_likelihood
from fastscore.likelihood.sdedit import sdedit

__all__ = [
    "BitsPerDim",
    "Divergence",
    "Likelihood",
    "VariationalBound",
    "bits_per_dim",
    "decode",
    "dequantize",
    "divergence",
    "encode",
    "log_likelihood",
    "sdedit",
    "slerp",
    "variational_bound",
]

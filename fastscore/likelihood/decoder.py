"""The decoder of a discrete-time diffusion model: a normal density, integrated over the interval of each level."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["discretized_log_prob", "log_interval"]


def discretized_log_prob(
    levels: Tensor, mean: Tensor, log_std: Tensor | float, low: float, high: float, bits: int
) -> Tensor:
    """Log-probability in nats of each level under N(mean, std^2), float64 like mean.

    Level k stands for ``low + (high - low) k / (2^bits - 1)`` and takes all that is nearest to it, the first and the
    last everything beyond.

    Args:
        levels: int64, in [0, 2^bits), like mean.
        mean: float64.
        log_std: float64, a number or like mean.
        low, high: what the first and the last level stand for.
        bits: depth of the data.

    Source: Ho et al., arXiv 2006.11239, eq. 13.
    """
    last = 2**bits - 1
    width = (high - low) / last
    scale = torch.as_tensor(-log_std, dtype=torch.float64).exp()
    centered = low + width * levels.double() - mean  # integers times a number are float32
    below = torch.where(levels == 0, -torch.inf, (centered - 0.5 * width) * scale)
    above = torch.where(levels == last, torch.inf, (centered + 0.5 * width) * scale)
    return log_interval(below, above)


def log_interval(a: Tensor, b: Tensor) -> Tensor:
    """Log of the probability that a standard normal lies in [a, b], a < b, infinite or not, float64."""
    right = a + b > 0  # in the tail on the left nothing cancels
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    upper = torch.special.log_ndtr(b)
    return upper + (-torch.expm1(torch.special.log_ndtr(a) - upper)).log()

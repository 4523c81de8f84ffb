"""The reverse chain of a discrete-time diffusion model: the coefficients of every step, and what a step costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastscore.samplers.grid import Node
from fastscore.score import Convention
from fastscore.sde import SDE

__all__ = ["VARIANCES", "ChainStep", "chain_steps", "normal_divergence", "prior_divergence"]

VARIANCES = ("fixed_small", "fixed_large", "learned_range")


class ChainStep(NamedTuple):
    """A step from t to s, in tensors of no dimension; float64.

    Attributes:
        alpha, sigma: marginal at t.
        scale: of the state in front of the network.
        p, q: the clean image is ``p x + q h``, h what the network gives.
        weight: of the clean image in the mean of ``q(x_s | x_t, x_0)``.
        log_variance: of ``q(x_s | x_t, x_0)``; of the last step, where it has none, that of the model.
        log_small, log_large: what the model's is between.
    """

    alpha: Tensor
    sigma: Tensor
    scale: Tensor
    p: Tensor
    q: Tensor
    weight: Tensor
    log_variance: Tensor
    log_small: Tensor
    log_large: Tensor

    def model_log_variance(self, v: Tensor | None) -> Tensor:
        """Of the model's step, with v (B, ...) from the network, or None where it is fixed and both ends are one."""
        return self.log_small if v is None else torch.lerp(self.log_small, self.log_large, 0.5 * (v.double() + 1))


def chain_steps(
    sde: SDE, convention: Convention, path: Sequence[Node], variance: str, device: torch.device
) -> list[ChainStep]:
    """The steps over a path of nodes that ends at the clean image, two or more, moved to the device at once.

    Args:
        variance: one of `VARIANCES`, see `variational_bound`.
    """
    times = torch.tensor([node.t for node in path[:-1]], dtype=torch.float64)
    scales = convention.input_scale(sde, times).expand(len(times)).tolist()
    p, q = (value.tolist() for value in convention.coefficients(sde, times, "denoised"))
    rows, posterior = [], math.nan
    for k, (node, after) in enumerate(itertools.pairwise(path)):
        _, b = node.transition(after)
        last = after.sigma == 0
        posterior = posterior if last else 2 * math.log(b * after.sigma / node.sigma)
        large = posterior if last and variance == "fixed_large" else 2 * math.log(b)
        small = large if variance == "fixed_large" else posterior
        weight = after.alpha * (b / node.sigma) ** 2
        rows.append((node.alpha, node.sigma, scales[k], p[k], q[k], weight, posterior, small, large))
    table = torch.tensor(rows, dtype=torch.float64).to(device)
    return [ChainStep(*row.unbind()) for row in table.unbind()]


def normal_divergence(step: ChainStep, log_variance: Tensor, gap: Tensor) -> Tensor:
    """KL divergence in nats, per element, of a step of the model from ``q(x_s | x_t, x_0)``.

    Args:
        log_variance: of the step of the model.
        gap: between x_0 and what the network takes for it.
    """
    ratio = log_variance - step.log_variance
    return 0.5 * (ratio + torch.expm1(-ratio) + (step.weight * gap).square() * (-log_variance).exp())


def prior_divergence(sde: SDE, first: Node, clean: Tensor) -> Tensor:
    """KL divergence in nats, per element, of the prior from what the forward process has made of the data at a node."""
    excess = (first.sigma / sde.prior_std - 1) * (first.sigma / sde.prior_std + 1)
    return 0.5 * (excess - math.log1p(excess) + (first.alpha / sde.prior_std * clean).square())

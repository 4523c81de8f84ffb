"""Predictors: one step of the reverse-time SDE or of the probability-flow ODE, as factors of x, score and z.

Source: Song et al., arXiv 2011.13456, appendices D to F; grids and step sizes as in the published implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastscore.samplers.plan import LINEAR
from fastscore.sde import SDE, VESDE, VPSDE, chain_index

__all__ = ["PREDICTORS", "Update", "ancestral", "euler_maruyama", "reverse_diffusion"]


@dataclass(frozen=True)
class Update:
    """A family of updates in terms of the score, one row per time, float64 of shape (N,).

    LINEAR: ``x <- x_factor x + score_factor score + noise_factor z``. LANGEVIN: ``x <- x + e score + sqrt(2 e) z`` with
    ``e = score_factor (|z| / |score|)^2``; the other factors are unused.
    """

    kind: str
    x_factor: Tensor
    score_factor: Tensor
    noise_factor: Tensor

    def denoised(self) -> Update:
        """The same without the noise of its last row."""
        noise_factor = self.noise_factor.clone()
        noise_factor[-1] = 0
        return replace(self, noise_factor=noise_factor)

    def rows(self) -> list[tuple[float, float, float]]:
        """``(x_factor, score_factor, noise_factor)`` of every time."""
        return list(zip(self.x_factor.tolist(), self.score_factor.tolist(), self.noise_factor.tolist(), strict=True))


def euler_maruyama(sde: SDE, times: Tensor, h: float | Tensor, probability_flow: bool) -> Update:
    """``x <- x - (f x - g^2 score) h + g sqrt(h) z`` (eq. 6), or with g^2 / 2 and no noise (eq. 13); h is the step."""
    f, g = sde.drift_coefficient(times), sde.diffusion(times)
    return _reverse_step(f * h, g * torch.as_tensor(h, dtype=torch.float64).sqrt(), probability_flow)


def reverse_diffusion(sde: SDE, times: Tensor, n: int, probability_flow: bool) -> Update:
    """The n-step chain run backward, ``x <- x - f_i x + G_i^2 score + G_i z`` (appendix E), or its probability flow."""
    return _reverse_step(*sde.chain_step(times, n), probability_flow)


def ancestral(sde: SDE, times: Tensor, n: int, probability_flow: bool) -> Update:
    """The posterior of the n-step chain with the score's clean image put in (eq. 4 for VP, appendix F for VE).

    VP adds noise of variance beta_i and VE of the posterior variance, as published. For other SDEs, which nobody
    published, the transition between neighboring grid times (the last one to t = 0) is exact and the noise has the
    posterior variance.
    """
    if isinstance(sde, VPSDE):
        betas = sde.chain_betas(n)[chain_index(times, n)]
        shrink = (1 - betas).rsqrt()
        return Update(LINEAR, shrink, betas * shrink, betas.sqrt())
    if isinstance(sde, VESDE):
        index, sigmas = chain_index(times, n), sde.chain_sigmas(n)
        sigma = sigmas[index]
        sigma_next = torch.cat([sigmas.new_zeros(1), sigmas])[index]
        growth = torch.ones_like(sigma)
    else:
        alpha, sigma = sde.marginal(times)
        # at t = 0 there is no noise; a discrete schedule does not reach that far
        alpha_next, sigma_next = torch.cat([alpha[1:], alpha.new_ones(1)]), torch.cat([sigma[1:], sigma.new_zeros(1)])
        growth = alpha_next / alpha
    # variance of x_t given x_next, and the posterior of x_next given x_t and x_0
    added = (sigma - sigma_next / growth) * (sigma + sigma_next / growth)
    return Update(LINEAR, growth, growth * added, sigma_next * added.sqrt() / sigma)


def _reverse_step(f: Tensor, g: Tensor, probability_flow: bool) -> Update:
    if probability_flow:
        return Update(LINEAR, 1 - f, 0.5 * g.square(), torch.zeros_like(g))
    return Update(LINEAR, 1 - f, g.square(), g)


def _euler_maruyama_published(sde: SDE, times: Tensor, n: int, probability_flow: bool) -> Update:
    return euler_maruyama(sde, times, 1 / n, probability_flow)


Predictor = Callable[[SDE, Tensor, int, bool], Update]
PREDICTORS: dict[str, Predictor | None] = {
    "euler_maruyama": _euler_maruyama_published,  # step 1 / N, not the grid's spacing
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "none": None,
}

"""Correctors: score-based MCMC steps at a fixed time, as factors of score and z.

Source: Song et al., arXiv 2011.13456, algorithms 4 and 5; step sizes as in the published implementation, whose alpha
is one step's ``1 - beta_i`` where the paper prints the cumulative product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.plan import LANGEVIN, LINEAR
from fastscore.samplers.predictors import Update
from fastscore.sde import SDE, VPSDE, SubVPSDE, chain_index

__all__ = ["CORRECTORS", "ald", "langevin"]


def langevin(sde: SDE, times: Tensor, n: int, snr: float) -> Update:
    """``x <- x + e score + sqrt(2 e) z`` with ``e = 2 alpha (snr |z| / |score|)^2`` (algorithms 4 and 5)."""
    alpha, unused = _chain_alpha(sde, times, n), torch.zeros_like(times)
    return Update(LANGEVIN, unused, 2 * alpha * snr**2, unused)


def ald(sde: SDE, times: Tensor, n: int, snr: float) -> Update:
    """Annealed Langevin dynamics: the same step with ``e = 2 alpha (snr sigma(t))^2``, which needs no norm."""
    step = 2 * _chain_alpha(sde, times, n) * (snr * sde.sigma(times)).square()
    return Update(LINEAR, torch.ones_like(step), step, (2 * step).sqrt())


def _chain_alpha(sde: SDE, times: Tensor, n: int) -> Tensor:
    """Alpha of one chain step: ``1 - beta_i`` for VP, 1 for VE, for sub-VP ``exp(-beta(t) / n)``."""
    if isinstance(sde, VPSDE):
        return 1 - sde.chain_betas(n)[chain_index(times, n)]
    if isinstance(sde, SubVPSDE):
        return (-sde.beta(times) / n).exp()
    return torch.ones_like(times)


Corrector = Callable[[SDE, Tensor, int, float], Update]
CORRECTORS: dict[str, Corrector | None] = {"langevin": langevin, "ald": ald, "none": None}

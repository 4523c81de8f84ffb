"""The published likelihood: a function of a network and data that gives bits per dimension."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.compat.score_sde.sampling import DriftAsScore, check_sde
from fastscore.compat.score_sde.score import Model, checked_model
from fastscore.compat.score_sde.sde import SDE
from fastscore.likelihood import log_likelihood
from fastscore.noise import ReplayNoise
from fastscore.samplers.base import check_choice, check_number, evaluating
from fastscore.score import Convention

__all__ = ["get_likelihood_fn"]

LikelihoodFunction = Callable[[Model, Tensor], tuple[Tensor, Tensor, int]]
_PROBES: dict[str, Callable[[Tensor], Tensor]] = {
    "Rademacher": lambda x: 2 * torch.randint_like(x, 0, 2) - 1,
    "Gaussian": torch.randn_like,
}


def get_likelihood_fn(
    sde: SDE,
    inverse_scaler: Callable[[Tensor | float], Tensor | float],
    hutchinson_type: str = "Rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "RK45",
    eps: float = 1e-5,
) -> LikelihoodFunction:
    """Bits per dimension by the probability-flow ODE from eps to t = 1, for networks of continuous times.

    The state is float64 and the drift float32, as published. Where rtol is as small as the rounding of the drift, that
    rounding decides the steps, and the number of calls can be another.

    Args:
        sde: of `fastscore.compat.score_sde`.
        inverse_scaler: from the scale of the network to that of the data, [0, 1]; ``7 - inverse_scaler(-1)`` bits are
            added, so that data of 8 bits are counted in their levels.
        hutchinson_type: ``"Rademacher"`` or ``"Gaussian"``, of the one probe of a solve, drawn by torch's generator.
        rtol, atol: relative and absolute tolerance, over the whole batch and its integrals.
        method: ``"RK45"``.
        eps: the time of the data.

    Returns:
        ``likelihood_fn(model, data)``, data (B, ...) floating-point on the scale of the network, which gives bits per
        dimension (B,), latents (B, ...), both in the dtype of the data, and the number of network calls.

    Raises:
        ValueError, TypeError: for other arguments, here, or for another network or data, there.

    Source: Song et al., arXiv 2011.13456, appendix D.2.
    """
    owner = "get_likelihood_fn"
    check_sde(owner, sde, inverse_scaler)
    check_choice(owner, "hutchinson_type", hutchinson_type, tuple(_PROBES))
    if method != "RK45":
        raise ValueError(f"{owner}: method must be 'RK45', got {method!r}")
    for name, value in (("rtol", rtol), ("atol", atol)):
        check_number(owner, name, value, least=0.0)
    check_number(owner, "eps", eps, above=0.0, below=1.0)

    def likelihood_fn(model: Model, data: Tensor) -> tuple[Tensor, Tensor, int]:
        checked_model(owner, model)
        _checks.is_state(owner, "data", data)
        probe = _PROBES[hutchinson_type](data)
        with evaluating(model):
            result = log_likelihood(
                sde.engine,
                DriftAsScore(sde, model),
                data.double(),
                rtol=rtol,
                atol=atol,
                norm="batch",
                max_steps=sys.maxsize,  # as published
                noise=ReplayNoise([probe.double()]),
                eps=eps,
                convention=Convention("score", "time"),
            )
        bits = -result.log_likelihood / (math.log(2) * math.prod(data.shape[1:])) + (7.0 - inverse_scaler(-1.0))
        return bits.to(data.dtype), result.latent.to(data.dtype), int(result.nfe[0]) if len(data) else 0

    return likelihood_fn

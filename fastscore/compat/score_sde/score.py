"""What a raw network is told, and its output as the score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastscore.compat.score_sde.sde import SDE, VESDE, VPSDE, ScoreFn, like
from fastscore.score import Convention

__all__ = ["Model", "checked_model", "convention_of", "get_score_fn"]

Model = Callable[[Tensor, Tensor], Tensor]


def checked_model(owner: str, model: Model) -> Model:
    """The network; raises unless it can be called."""
    if not callable(model):
        raise TypeError(f"{owner}: model must be callable as model(x, labels), got {type(model).__name__}")
    return model


def convention_of(sde: SDE, continuous: bool) -> Convention:
    """How the engine reads a network; see `get_score_fn`."""
    if isinstance(sde, VESDE):
        return Convention("score", "sigma") if continuous else Convention("score", "noise_index", sde.N)
    if continuous or not isinstance(sde, VPSDE):
        return Convention("noise", "scaled_time")
    return Convention("noise", "chain_index", sde.N)


def get_score_fn(sde: SDE, model: Model, train: bool = False, continuous: bool = False) -> ScoreFn:
    """``score_fn(x, t)`` of a raw network, in the dtypes of x (B, ...) and t (B,).

    Args:
        sde: of this module.
        model: VE: gives the score for labels sigma(t), or, not continuous, ``round((1 - t) (N - 1))``; VP and sub-VP:
            gives minus the score times the standard deviation for labels 999 t, or, VP and not continuous,
            ``t (N - 1)``.
        train: put a module in training mode, or else in evaluation mode.
        continuous: whether the network was trained on continuous times.

    Raises:
        TypeError: for another SDE, or a network that cannot be called.
    """
    checked_model("get_score_fn", model)
    if not isinstance(sde, SDE):
        raise TypeError(f"get_score_fn: sde must be an SDE of fastscore.compat.score_sde, got {type(sde).__name__}")

    def network(x: Tensor, labels: Tensor) -> Tensor:
        if isinstance(model, nn.Module) and model.training != train:
            model.train(train)
        return model(x, labels)

    def score_fn(x: Tensor, t: Tensor) -> Tensor:
        if isinstance(sde, VESDE):
            if continuous:
                return network(x, sde.marginal_prob(x, t)[1])
            return network(x, ((sde.T - t) * (sde.N - 1)).round().to(torch.int64))
        if continuous or not isinstance(sde, VPSDE):
            return -network(x, t * 999) / like(x, sde.marginal_prob(t, t)[1])
        labels = t * (sde.N - 1)
        std = sde.sqrt_1m_alphas_cumprod.to(t.device)[labels.to(torch.int64)]
        return -network(x, labels) / like(x, std)

    return score_fn

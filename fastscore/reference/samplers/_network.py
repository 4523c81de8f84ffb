"""What a network predicts, by the definition of each prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]


def score(sde: SDE, model: Model, x: Tensor, t: float, convention: Convention) -> Tensor:
    """The score at x (B, ...), time t."""
    time = torch.tensor(t, dtype=torch.float64)
    label = convention.labels(sde, time).to(x.device)
    if label.dtype != torch.int64:
        label = label.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    scale = float(convention.input_scale(sde, time))
    h = model(x if scale == 1 else x * scale, label.expand(x.shape[0])).to(x.dtype)
    alpha, sigma = (float(c) for c in convention.marginal(sde, time))
    match convention.prediction:
        case "score":
            return h
        case "noise":
            return -h / sigma
        case "denoised":
            return (alpha * h - x) / sigma**2
        case "v":
            return -(alpha * h + sigma * x) / (alpha**2 + sigma**2) / sigma
    noise_ratio, sigma_data = sigma / alpha, convention.sigma_data
    c_skip = sigma_data**2 / (noise_ratio**2 + sigma_data**2)
    c_out = noise_ratio * sigma_data / (noise_ratio**2 + sigma_data**2) ** 0.5
    clean = c_skip * (x / alpha) + c_out * h
    return (alpha * clean - x) / sigma**2


def noise(sde: SDE, model: Model, x: Tensor, t: float, convention: Convention) -> Tensor:
    """The noise eps in ``x = alpha x_0 + sigma eps``: minus sigma times the score."""
    sigma = float(convention.marginal(sde, torch.tensor(t, dtype=torch.float64))[1])
    return -sigma * score(sde, model, x, t, convention)


def denoised(sde: SDE, model: Model, x: Tensor, t: float, convention: Convention) -> Tensor:
    """The clean image: Tweedie's formula ``(x + sigma^2 score) / alpha``."""
    alpha, sigma = (float(c) for c in convention.marginal(sde, torch.tensor(t, dtype=torch.float64)))
    return (x + sigma**2 * score(sde, model, x, t, convention)) / alpha

"""UniPC.

Source: Zhao et al., arXiv 2302.04867, algorithms 5 to 8; the weight 1/2 where there is one unknown as in their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import denoised
from fastscore.reference.samplers._network import noise as noise_of

if TYPE_CHECKING:
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["unipc_sampler"]


@torch.no_grad()
def unipc_sampler(
    sde: SDE,
    model: Model,
    x: Tensor,
    convention: Convention,
    times: Tensor,
    *,
    order: int = 2,
    variant: str = "bh2",
    predict_x0: bool = True,
    disable_corrector: Collection[int] = (),
    lower_order_final: bool = True,
    denoise: bool = True,
) -> Tensor:
    """From the state x of shape (B, ...) at the first of the `times`; others as for `fastscore.UniPCSampler`."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return (denoised if predict_x0 else noise_of)(sde, model, x, float(t), convention)

    steps = len(times) - 1 + denoise
    lambdas = (sde.log_snr(times) / 2).tolist()
    outputs = [predict(x, times[0])]
    for i in range(steps):
        if denoise and i == steps - 1:
            t = float(times[i])
            if predict_x0:
                return outputs[i]
            alpha, sigma = (float(c) for c in sde.marginal(t))
            return (x - sigma * outputs[i]) / alpha
        p = min(order, i + 1, steps - i) if lower_order_final else min(order, i + 1)
        h = lambdas[i + 1] - lambdas[i]
        rs = [(lambdas[i - k] - lambdas[i]) / h for k in range(1, p)]
        ds = [(outputs[i - k] - outputs[i]) / r for k, r in zip(range(1, p), rs, strict=True)]
        (alpha, sigma), (alpha_t, sigma_t) = ([float(c) for c in sde.marginal(times[k])] for k in (i, i + 1))
        hh, scale = (-h, alpha_t) if predict_x0 else (h, sigma_t)
        ratio = sigma_t / sigma if predict_x0 else alpha_t / alpha
        b_h = hh if variant == "bh1" else math.exp(hh) - 1
        linear = ratio * x - scale * (math.exp(hh) - 1) * outputs[i]
        x_predicted = linear
        for rho, d in zip(_rhos(rs, hh, b_h), ds, strict=True):
            x_predicted = x_predicted - scale * b_h * rho * d
        if i == steps - 1:
            return x_predicted
        outputs.append(predict(x_predicted, times[i + 1]))
        if i in disable_corrector:
            x = x_predicted
            continue
        x = linear
        for rho, d in zip(_rhos([*rs, 1.0], hh, b_h), [*ds, outputs[i + 1] - outputs[i]], strict=True):
            x = x - scale * b_h * rho * d
    return x


def _rhos(rs: list[float], hh: float, b_h: float) -> list[float]:
    """Solution of ``sum_k r_k^(j - 1) rho_k = j! hh phi_(j + 1)(hh) / B(h)``, j = 1 ... n."""
    n = len(rs)
    if n <= 1:
        return [0.5] * n
    right = torch.tensor([math.factorial(j) * hh * _phi(j + 1, hh) / b_h for j in range(1, n + 1)], dtype=torch.float64)
    vandermonde = torch.tensor([[r ** (j - 1) for r in rs] for j in range(1, n + 1)], dtype=torch.float64)
    rhos: list[float] = (torch.linalg.inv(vandermonde) @ right).tolist()
    return rhos


def _phi(k: int, z: float) -> float:
    """``sum_j z^j / (j + k)!``, the k-th function of exponential integrators."""
    return sum(z**j / math.factorial(j + k) for j in range(60))

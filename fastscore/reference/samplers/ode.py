"""Fixed-step Runge-Kutta methods for the probability-flow ODE.

Source: Song et al., arXiv 2011.13456, eq. 13; the methods: Hairer, Nørsett and Wanner 1993, section II.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastscore.reference.samplers._network import score as score_of

if TYPE_CHECKING:
    from fastscore.score import Convention
    from fastscore.sde import SDE

    Model = Callable[[Tensor, Tensor], Tensor]

__all__ = ["ode_sampler", "spaced_times"]


@torch.no_grad()
def ode_sampler(sde: SDE, model: Model, x: Tensor, convention: Convention, times: Tensor, method: str) -> Tensor:
    """Integrate from the state x (B, ...) at the first of the falling `times` to the last.

    Args:
        method: ``"euler"``, ``"heun"`` or ``"rk4"``.
    """

    def slope(x: Tensor, t: float) -> Tensor:
        score = score_of(sde, model, x, t, convention)
        return float(sde.drift_coefficient(t)) * x - 0.5 * float(sde.diffusion(t)) ** 2 * score

    for t, t_next in itertools.pairwise(times.tolist()):
        h = t_next - t
        k1 = slope(x, t)
        if method == "euler" or float(sde.sigma(t_next)) == 0:
            x = x + h * k1
        elif method == "heun":
            k2 = slope(x + h * k1, t_next)
            x = x + h * (k1 + k2) / 2
        else:
            k2 = slope(x + h / 2 * k1, t + h / 2)
            k3 = slope(x + h / 2 * k2, t + h / 2)
            k4 = slope(x + h * k3, t_next)
            x = x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6
    return x


def spaced_times(sde: SDE, spacing: str, n: int, end: float, rho: float = 7.0) -> Tensor:
    """n times from 1 to `end`, float64, even in what `spacing` names (see `fastscore.ODESampler`)."""
    u = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    first, last = torch.tensor(1.0, dtype=torch.float64), torch.tensor(end, dtype=torch.float64)
    match spacing:
        case "linear":
            return (1 - u) * first + u * last
        case "quadratic":
            return ((1 - u) * first.sqrt() + u * last.sqrt()) ** 2
        case "log_snr":
            return sde.inverse_log_snr((1 - u) * sde.log_snr(first) + u * sde.log_snr(last))
    levels = [(sde.sigma(t) / sde.alpha(t)) ** (1 / rho) for t in (first, last)]
    return sde.inverse_log_snr(-2 * rho * ((1 - u) * levels[0] + u * levels[1]).log())

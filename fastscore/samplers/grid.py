"""Where a sampler stops on its way from noise to data: times, and alpha and sigma there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore.sde import SDE

__all__ = ["CLEAN", "SPACINGS", "Node", "node_at", "nodes", "path", "time_grid"]


@dataclass(frozen=True)
class Node:
    """A time and the marginal there, ``x = alpha x_0 + sigma eps``."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of EDM and k-diffusion."""
        return self.sigma / self.alpha

    @property
    def log_ratio(self) -> float:
        """log(alpha / sigma), lambda of the DPM-Solver papers; infinity without noise."""
        return math.log(self.alpha / self.sigma) if self.sigma else math.inf

    def transition(self, earlier: Node) -> tuple[float, float]:
        """``(a, s)`` of ``x_here = a x_earlier + s z``, the forward process from a node with less noise."""
        a = self.alpha / earlier.alpha
        # (a - b)(a + b): neighboring levels are close, their squares cancel
        return a, math.sqrt(max((self.sigma - a * earlier.sigma) * (self.sigma + a * earlier.sigma), 0.0))


CLEAN = Node(0.0, 1.0, 0.0)


def nodes(sde: SDE, times: Tensor) -> list[Node]:
    """One node per time of a tensor (n,)."""
    alpha, sigma = sde.marginal(times.to(torch.float64))
    return [Node(*row) for row in zip(times.tolist(), alpha.tolist(), sigma.tolist(), strict=True)]


def node_at(sde: SDE, ratio: float) -> Node:
    """The node whose sigma / alpha is `ratio`."""
    if ratio == 0:
        return CLEAN
    return nodes(sde, sde.inverse_log_snr(torch.tensor([-2 * math.log(ratio)], dtype=torch.float64)))[0]


def path(
    owner: str, sde: SDE, spacing: str | Tensor, steps: int, end: float, rho: float = 7.0, *, clean: bool = False
) -> list[Node]:
    """The ``steps + 1`` nodes that `steps` steps run over, from t = 1, or the first of the given times.

    Args:
        owner, spacing, end, rho: see `time_grid`.
        clean: the last step leads from `end` to the clean image, and given times are `steps` in number.

    Raises:
        ValueError: for what `time_grid` refuses, times outside [0, 1] or without signal, or no noise before the end.
    """
    times = time_grid(owner, sde, spacing, steps - clean, end, rho)
    if not bool(((times > -1e-9) & (times < sde.T + 1e-9)).all()):
        raise ValueError(f"{owner}: times must lie in [0, 1], got {times.tolist()}")
    grid = nodes(sde, times)
    grid += [CLEAN] * clean
    noisy = all(node.sigma > 0 for node in grid[:-1]) and grid[-1].sigma >= 0  # also false for NaN
    if not noisy or not all(node.alpha > 0 for node in grid):
        raise ValueError(
            f"{owner}: {type(sde).__name__} must have signal and noise at every time before the last, "
            f"but does not at all of {times.tolist()}"
        )
    return grid


def time_grid(owner: str, sde: SDE, spacing: str | Tensor, steps: int, end: float, rho: float = 7.0) -> Tensor:
    """``steps + 1`` times from t = 1 down to ``end``, float64.

    Args:
        owner: whom an error is reported for.
        spacing: ``"linear"``: even in t; ``"quadratic"``: even in sqrt(t); ``"log_snr"``: even in the log
            signal-to-noise ratio; ``"karras"``: even in ``(sigma / alpha)^(1 / rho)`` (arXiv 2206.00364, eq. 5);
            or the times themselves, falling, of shape (steps + 1,).
    """
    if isinstance(spacing, Tensor):
        times = spacing.detach().to("cpu", torch.float64)
        if times.shape != (steps + 1,) or not bool((times.diff() < 0).all()) or not bool(torch.isfinite(times).all()):
            raise ValueError(
                f"{owner}: spacing, given as times, must fall strictly and have shape (steps + 1,) = ({steps + 1},), "
                f"got shape {tuple(times.shape)}"
            )
        return times
    if spacing not in SPACINGS:
        raise ValueError(
            f"{owner}: spacing must be one of {', '.join(SPACINGS)}, or a tensor of times, got {spacing!r}"
        )
    if not 1 <= rho < math.inf:
        raise ValueError(f"{owner}: rho must be a finite number of at least 1, got {rho!r}")
    times = SPACINGS[spacing](sde, torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64), end, rho)
    times[-1], times[0] = end, sde.T  # to the last bit; a single time is the first
    return times


def _linear(sde: SDE, u: Tensor, end: float, rho: float) -> Tensor:
    return sde.T + u * (end - sde.T)


def _quadratic(sde: SDE, u: Tensor, end: float, rho: float) -> Tensor:
    return _between(math.sqrt(sde.T), math.sqrt(end), u).square()


def _log_snr(sde: SDE, u: Tensor, end: float, rho: float) -> Tensor:
    first, last = sde.log_snr(torch.tensor([sde.T, end], dtype=torch.float64)).tolist()
    return sde.inverse_log_snr(_between(first, last, u))


def _karras(sde: SDE, u: Tensor, end: float, rho: float) -> Tensor:
    first, last = (-0.5 * sde.log_snr(torch.tensor([sde.T, end], dtype=torch.float64)) / rho).exp().tolist()
    return sde.inverse_log_snr(-2 * rho * _between(first, last, u).log())


def _between(first: float, last: float, u: Tensor) -> Tensor:
    return first + u * (last - first)


SPACINGS: dict[str, Callable[[SDE, Tensor, float, float], Tensor]] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
    "karras": _karras,
}

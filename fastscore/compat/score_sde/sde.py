"""The SDEs with their published constructors and methods, computed in the dtype of the time.

Shapes: x, z (B, ...); t (B,) in [0, 1]. ``engine`` is the same SDE as the samplers of `fastscore` take it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastscore import sde as engines
from fastscore.samplers.base import check_count

__all__ = ["SDE", "VESDE", "VPSDE", "ReverseSDE", "like", "subVPSDE"]

ScoreFn = Callable[[Tensor, Tensor], Tensor]


class SDE(ABC):
    """A forward SDE on [0, 1] and its chain of N steps.

    Args:
        N: number of steps, an integer >= 1.

    Raises:
        TypeError, ValueError: for another N.
    """

    engine: engines.SDE

    def __init__(self, N: int) -> None:
        check_count(type(self).__name__, "N", N, 1)
        self._N = N

    @property
    def N(self) -> int:  # noqa: N802
        """Number of steps of the chain, and of samplers."""
        return self._N

    @property
    def T(self) -> int:  # noqa: N802
        """The last time."""
        return 1

    @abstractmethod
    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift (B, ...) and diffusion (B,) at t."""

    @abstractmethod
    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and standard deviation (B,) of x_t given x_0 = x."""

    def prior_sampling(self, shape: Sequence[int]) -> Tensor:
        """Draw from the prior on the CPU, by torch's generator."""
        return self.engine.prior_sample(shape, dtype=torch.get_default_dtype())

    def prior_logp(self, z: Tensor) -> Tensor:
        """Log-density of the prior in nats, (B,)."""
        return self.engine.prior_log_prob(z).to(z.dtype)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(f, G)``, (B, ...) and (B,), of the chain ``x_{i + 1} = x_i + f + G z`` at t."""
        f, G = self.engine.chain_step(self.engine_time(t), self.N)
        return like(x, f.to(t.dtype)) * x, G.to(t.dtype)

    def reverse(self, score_fn: ScoreFn, probability_flow: bool = False) -> ReverseSDE:
        """The reverse-time SDE (arXiv 2011.13456, eq. 6), or the probability-flow ODE (eq. 13)."""
        return ReverseSDE(self, score_fn, probability_flow)

    def engine_time(self, t: Tensor) -> Tensor:
        """T in float64, where the engine finds the index in the chain that t has in its own arithmetic."""
        steps = max(self.N - 1, 1)
        index = (t * (self.N - 1)).to(torch.int64).double()
        return t.double().clamp(index / steps, (index + 1 - 1e-8) / steps)


class ReverseSDE:
    """What `SDE.reverse` gives: `sde` and `discretize` of the reverse-time SDE, whose diffusion is 0 for the ODE.

    Args:
        forward: the forward SDE.
        score_fn: ``score_fn(x, t)``, of x's shape.
        probability_flow: the ODE in place of the SDE.
    """

    def __init__(self, forward: SDE, score_fn: ScoreFn, probability_flow: bool = False) -> None:
        self.N, self.T = forward.N, forward.T
        self.forward, self.score_fn, self.probability_flow = forward, score_fn, probability_flow

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift (B, ...) and diffusion (B,) at t."""
        return self._reversed(*self.forward.sde(x, t), x, t)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(f, G)`` of the chain run backward, ``x_i = x_{i + 1} - f + G z``, at t."""
        return self._reversed(*self.forward.discretize(x, t), x, t)

    def _reversed(self, drift: Tensor, diffusion: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        drift = drift - like(x, diffusion) ** 2 * self.score_fn(x, t) * (0.5 if self.probability_flow else 1.0)
        return drift, torch.zeros_like(diffusion) if self.probability_flow else diffusion


class VESDE(SDE):
    """The variance-exploding SDE.

    Args:
        sigma_min, sigma_max: noise levels at t = 0 and 1, 0 < sigma_min < sigma_max.
        N: see `SDE`.

    Attributes:
        discrete_sigmas: the levels of the chain, ascending, float32 (N,).
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50, N: int = 1000) -> None:
        super().__init__(N)
        self.engine = engine = engines.VESDE(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.discrete_sigmas = engine.chain_sigmas(N).float()

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), self._sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self._sigma(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t


class VPSDE(SDE):
    """The variance-preserving SDE.

    Args:
        beta_min, beta_max: noise rate at t = 0 and 1, 0 < beta_min <= beta_max.
        N: see `SDE`; the chain exists for N > beta_max.

    Attributes:
        beta_0, beta_1: beta_min and beta_max.
        discrete_betas, alphas, alphas_cumprod, sqrt_alphas_cumprod, sqrt_1m_alphas_cumprod: of the chain, float32 (N,).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000) -> None:
        super().__init__(N)
        self.beta_0, self.beta_1 = beta_min, beta_max
        self.discrete_betas = torch.linspace(beta_min / N, beta_max / N, N, dtype=torch.float32)
        self.alphas = 1 - self.discrete_betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sqrt_1m_alphas_cumprod = (1 - self.alphas_cumprod).sqrt()
        self.engine = _Float32VPSDE(
            beta_min, beta_max, chain_alpha=self.sqrt_alphas_cumprod, chain_sigma=self.sqrt_1m_alphas_cumprod
        )

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta_0 + t * (self.beta_1 - self.beta_0)
        return -0.5 * like(x, beta) * x, beta.sqrt()

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _log_alpha(self.beta_0, self.beta_1, t)
        return like(x, log_alpha.exp()) * x, _variance(log_alpha).sqrt()


class subVPSDE(SDE):  # noqa: N801, its published name
    """The sub-VP SDE.

    Args:
        beta_min, beta_max: noise rate at t = 0 and 1, 0 < beta_min <= beta_max.
        N: see `SDE`.

    Attributes:
        beta_0, beta_1: beta_min and beta_max.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20, N: int = 1000) -> None:
        super().__init__(N)
        self.beta_0, self.beta_1 = beta_min, beta_max
        self.engine = _Float32SubVPSDE(beta_min, beta_max)

    def sde(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.beta_0 + t * (self.beta_1 - self.beta_0)
        discount = _variance(-self.beta_0 * t - 0.5 * (self.beta_1 - self.beta_0) * t**2)
        return -0.5 * like(x, beta) * x, (beta * discount).sqrt()

    def marginal_prob(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = _log_alpha(self.beta_0, self.beta_1, t)
        return like(x, log_alpha.exp()) * x, _variance(log_alpha)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        drift, diffusion = self.sde(x, t)
        return drift / self.N, diffusion / math.sqrt(self.N)


@dataclass(frozen=True, eq=False)
class _Float32VPSDE(engines.VPSDE):
    """VP with the published standard deviation, which loses digits at small t, and the tables of its one chain."""

    chain_alpha: Tensor = field(kw_only=True)
    chain_sigma: Tensor = field(kw_only=True)

    def chain_marginal(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        index = engines.chain_index(t, n)
        return self.chain_alpha.double()[index], self.chain_sigma.double()[index]

    def sigma(self, t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float32)
        return _variance(_log_alpha(self.beta_min, self.beta_max, t)).sqrt().double()


class _Float32SubVPSDE(engines.SubVPSDE):
    """Sub-VP likewise."""

    def sigma(self, t: float | Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float32)
        return _variance(_log_alpha(self.beta_min, self.beta_max, t)).double()


def _log_alpha(beta_0: float, beta_1: float, t: Tensor) -> Tensor:
    return -0.25 * t**2 * (beta_1 - beta_0) - 0.5 * t * beta_0


def _variance(log_alpha: Tensor) -> Tensor:
    # not expm1: the published numbers have the rounding of exp; from float64, as float32 rounds otherwise elsewhere
    return 1 - torch.exp(2 * log_alpha.double()).to(log_alpha.dtype)


def like(x: Tensor, values: Tensor) -> Tensor:
    """Values (B,) in a shape that multiplies x (B, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 1))

"""Forward SDEs of score-based models: marginals, drift, diffusion, discretization, prior.

Every SDE here is linear, ``dx = f(t) x dt + g(t) dw`` on t in [0, 1], so that ``x_t = alpha(t) x_0 + sigma(t) eps``.
Times come in as floats or tensors; everything goes out as float64 tensors on the device of the time, computed with
``expm1`` where the textbook formula cancels (the standard deviation of a VP SDE at t = 1e-5 loses 0.6% in float32).

Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv 2011.13456,
section 3.4 and appendices B to D.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastscore.noise import Noise

__all__ = ["SDE", "VESDE", "VPSDE", "Discretization", "SubVPSDE"]

AnySDE = TypeVar("AnySDE", bound="SDE")


@dataclass(frozen=True)
class Discretization:
    """The N-step chain of an SDE, ``x_{i+1} = (1 + drift_i) x_i + diffusion_i z``; every field float64 of shape (N,).

    Attributes:
        times: continuous time of index i, ``i / (N - 1)``.
        drift, diffusion: coefficients of one step of the chain, taken at index i.
        alpha, sigma: marginal of the chain at index i, ``x_i = alpha_i x_0 + sigma_i eps``: what a network trained on
            discrete indices has seen (DDPM's ``sqrt(alphas_cumprod)``, SMLD's noise levels).
    """

    times: Tensor
    drift: Tensor
    diffusion: Tensor
    alpha: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class SDE(ABC):
    """A linear forward SDE on t in [0, 1]."""

    T: ClassVar[float] = 1.0
    sampling_eps: ClassVar[float] = 1e-3  # the time at which samplers stop, as published

    @abstractmethod
    def log_alpha(self, t: float | Tensor) -> Tensor:
        """Log of the factor of the data in the marginal."""

    @abstractmethod
    def sigma(self, t: float | Tensor) -> Tensor:
        """Standard deviation of the noise in the marginal ``x_t = alpha x_0 + sigma eps``."""

    @abstractmethod
    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        """f(t) of the drift ``f(t) x``."""

    @abstractmethod
    def diffusion(self, t: float | Tensor) -> Tensor:
        """g(t) of ``dx = f(t) x dt + g(t) dw``."""

    @abstractmethod
    def log_snr(self, t: float | Tensor) -> Tensor:
        """``log(alpha(t)^2 / sigma(t)^2)``, falling in t."""

    @abstractmethod
    def inverse_log_snr(self, log_snr: float | Tensor) -> Tensor:
        """The time at which the log signal-to-noise ratio has the given value."""

    @property
    @abstractmethod
    def prior_std(self) -> float:
        """Standard deviation of the prior, the Gaussian that the marginal at t = 1 is replaced by."""

    def until(self: AnySDE, t: float) -> AnySDE:
        """The same SDE on [0, t], for samplers that begin with a state at t and not with the prior.

        Raises:
            ValueError: t is not in (0, T].
        """
        if not 0 < t <= self.T:
            raise ValueError(f"{type(self).__name__}.until: t must lie in (0, {self.T:g}], got {t!r}")
        part = copy.copy(self)
        object.__setattr__(part, "T", float(t))
        return part

    def check_prior(self, owner: str) -> None:
        """Raise ValueError, in the name of `owner`, unless this SDE goes on to t = 1, where it has a prior."""
        if type(self).T != self.T:
            raise ValueError(
                f"{owner}: sde must reach t = {type(self).T:g}, its prior, got one that ends at {self.T:g}"
            )

    def alpha(self, t: float | Tensor) -> Tensor:
        """Factor of the data in the marginal ``x_t = alpha x_0 + sigma eps``."""
        return self.log_alpha(t).exp()

    def marginal(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha(t), sigma(t))`` of the perturbation kernel (arXiv 2011.13456, eq. 29)."""
        return self.alpha(t), self.sigma(t)

    def drift(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Drift ``f(t) x`` for x of shape (B, ...) and t a scalar or of shape (B,), in x's dtype."""
        f = self.drift_coefficient(t).to(x.device, x.dtype)
        return x * (f.reshape(-1, *[1] * (x.ndim - 1)) if f.ndim else f)

    def chain_step(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Drift and diffusion coefficient of one step of the n-step chain at t; by default of Euler-Maruyama."""
        return self.drift_coefficient(t) / n, self.diffusion(t) / math.sqrt(n)

    def chain_marginal(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` that a network trained on the n-step chain has seen at t; the SDE's own by default."""
        return self.marginal(t)

    def discretize(self, n: int) -> Discretization:
        """The n-step Markov chain whose limit is this SDE (DDPM for VP, SMLD for VE).

        Raises:
            ValueError: if n is below 1, or so small that the chain does not exist (VP needs n > beta_max).
        """
        times = torch.linspace(0.0, self.T, _check_steps(n), dtype=torch.float64)
        return Discretization(times, *self.chain_step(times, n), *self.chain_marginal(times, n))

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        noise: Noise | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw x_1 of shape (B, ...) from the prior, by ``noise`` (draw number 0) or else by torch's generator."""
        self.check_prior("prior_sample")
        if noise is None:
            z = torch.randn(tuple(shape), dtype=dtype, device=device)
        else:
            z = noise.normal(tuple(shape), dtype=dtype, device=torch.device(device), draw=0)
        return z * self.prior_std

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats of x, shape (B, ...), under the prior: float64 of shape (B,)."""
        self.check_prior("prior_log_prob")
        flat = x.to(torch.float64).reshape(x.shape[0], math.prod(x.shape[1:]))
        log_norm = 0.5 * flat.shape[1] * math.log(2 * math.pi * self.prior_std**2)
        return -0.5 * (flat / self.prior_std).square().sum(1) - log_norm


@dataclass(frozen=True)
class VESDE(SDE):
    """Variance-exploding SDE, the limit of SMLD: ``sigma(t) = sigma_min (sigma_max / sigma_min)^t`` (eq. 30).

    Args:
        sigma_min, sigma_max: noise levels at t = 0 and 1 in units of the data, 0 < sigma_min < sigma_max.
    """

    sampling_eps: ClassVar[float] = 1e-5

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "VESDE: sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}"
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max) - math.log(self.sigma_min)

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    def log_alpha(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(_float64(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        return self.sigma_min * (_float64(t) * self._log_ratio).exp()

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return torch.zeros_like(_float64(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def log_snr(self, t: float | Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + _float64(t) * self._log_ratio)

    def inverse_log_snr(self, log_snr: float | Tensor) -> Tensor:
        return (-0.5 * _float64(log_snr) - math.log(self.sigma_min)) / self._log_ratio

    def chain_sigmas(self, n: int) -> Tensor:
        """The n noise levels of the chain, ascending, evenly spaced in log: float64 of shape (n,)."""
        steps = torch.linspace(0.0, 1.0, _check_steps(n), dtype=torch.float64)
        return self.sigma_min * (steps * self._log_ratio).exp()

    def chain_step(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """``x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z`` with sigma_{-1} = 0 (arXiv 2011.13456, eq. 20)."""
        t, sigmas = _float64(t), self.chain_sigmas(n)
        below = torch.cat([sigmas.new_zeros(1), sigmas[:-1]])
        # (a - b)(a + b): neighboring levels are close, their squares cancel
        diffusion = ((sigmas - below) * (sigmas + below)).sqrt()
        return torch.zeros_like(t), diffusion.to(t.device)[chain_index(t, n)]

    def chain_marginal(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        t = _float64(t)
        return torch.ones_like(t), self.chain_sigmas(n).to(t.device)[chain_index(t, n)]


@dataclass(frozen=True)
class _BetaSDE(SDE):
    """What VP and sub-VP share: beta(t) linear in t, drift -beta(t) x / 2, a standard normal prior."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"{type(self).__name__}: beta_min and beta_max must satisfy 0 < beta_min <= beta_max, "
                f"got beta_min={self.beta_min} and beta_max={self.beta_max}"
            )

    @property
    def prior_std(self) -> float:
        return 1.0

    def beta(self, t: float | Tensor) -> Tensor:
        """``beta_min + t (beta_max - beta_min)``."""
        return self.beta_min + _float64(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: float | Tensor) -> Tensor:
        t = _float64(t)
        return -t * (0.25 * t * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # root of t^2 (b1 - b0) / 4 + t b0 / 2 + log_alpha in the form that does not cancel at small t
        half = 0.5 * self.beta_min
        return -2 * log_alpha / (half + (half**2 - (self.beta_max - self.beta_min) * log_alpha).sqrt())


@dataclass(frozen=True)
class VPSDE(_BetaSDE):
    """Variance-preserving SDE, the limit of DDPM: alpha^2 + sigma^2 = 1 (arXiv 2011.13456, eq. 32 and 33).

    Args:
        beta_min, beta_max: noise rate at t = 0 and 1, 0 < beta_min <= beta_max.
    """

    def sigma(self, t: float | Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def diffusion(self, t: float | Tensor) -> Tensor:
        return self.beta(t).sqrt()

    def log_snr(self, t: float | Tensor) -> Tensor:
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - _log_one_minus_exp(2 * log_alpha)

    def inverse_log_snr(self, log_snr: float | Tensor) -> Tensor:
        log_snr = _float64(log_snr)
        return self._time_of_log_alpha(-0.5 * log_one_plus_exp(-log_snr))

    def chain_betas(self, n: int) -> Tensor:
        """beta_i of the n-step chain, evenly spaced from beta_min / n to beta_max / n: float64 of shape (n,).

        Raises:
            ValueError: if n <= beta_max: a beta of 1 or more leaves no chain (published code returns NaN there).
        """
        if _check_steps(n) <= self.beta_max:
            raise ValueError(
                f"VPSDE: a chain of {n} steps has beta_max / {n} = {self.beta_max / n:.3g} >= 1 and does not exist; "
                f"use more than beta_max = {self.beta_max:g} steps, or predictor 'euler_maruyama' "
                "with corrector 'none', which needs no chain"
            )
        return torch.linspace(self.beta_min / n, self.beta_max / n, n, dtype=torch.float64)

    def chain_step(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """``x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z``, DDPM's forward chain (arXiv 2011.13456, eq. 22)."""
        t = _float64(t)
        betas = self.chain_betas(n).to(t.device)[chain_index(t, n)]
        return torch.expm1(0.5 * torch.log1p(-betas)), betas.sqrt()

    def chain_marginal(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        t = _float64(t)
        log_alpha = 0.5 * torch.log1p(-self.chain_betas(n)).cumsum(0).to(t.device)[chain_index(t, n)]
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


@dataclass(frozen=True)
class SubVPSDE(_BetaSDE):
    """Sub-VP SDE: the VP drift with a smaller diffusion, ``sigma = 1 - alpha^2`` (arXiv 2011.13456, eq. 27 to 29).

    Args:
        beta_min, beta_max: noise rate at t = 0 and 1, 0 < beta_min <= beta_max.
    """

    def sigma(self, t: float | Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def diffusion(self, t: float | Tensor) -> Tensor:
        return (-self.beta(t) * torch.expm1(4 * self.log_alpha(t))).sqrt()

    def log_snr(self, t: float | Tensor) -> Tensor:
        log_alpha = self.log_alpha(t)
        return 2 * (log_alpha - _log_one_minus_exp(2 * log_alpha))

    def inverse_log_snr(self, log_snr: float | Tensor) -> Tensor:
        ratio = (0.5 * _float64(log_snr)).exp()  # alpha / (1 - alpha^2)
        alpha = 2 * ratio / (1 + (1 + 4 * ratio.square()).sqrt())
        small = torch.log1p(-(alpha / ratio).clamp(max=0.9))  # near t = 0, where log(alpha) cancels
        return self._time_of_log_alpha(torch.where(ratio > 1, 0.5 * small, alpha.log()))


def chain_index(t: float | Tensor, n: int) -> Tensor:
    """Index of time t in an n-step chain, ``floor(t (n - 1))``, as published; int64."""
    # the slack keeps i / (n - 1) * (n - 1) at i
    return (_float64(t) * (n - 1) + 1e-9).floor().to(torch.int64).clamp(0, n - 1)


def _float64(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def log_one_plus_exp(x: Tensor) -> Tensor:
    """log(1 + exp(x)); unlike torch.logaddexp, an element's last bit does not depend on how many there are."""
    return x.clamp(min=0) + torch.log1p((-x.abs()).exp())


def _log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate on both sides of -log 2."""
    return torch.where(x > -math.log(2), (-torch.expm1(x)).log(), torch.log1p(-x.exp()))


def _check_steps(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"discretize: the number of steps must be an integer >= 1, got {n!r}")
    return n

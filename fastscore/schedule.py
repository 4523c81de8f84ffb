"""Discrete schedules of DDPM-like models as an SDE in continuous time.

Source: Lu et al., "DPM-Solver", arXiv 2206.00927, appendix D.1: the N noise levels of the training lie at the times
``(i + 1) / N``, i = 0 ... N - 1, with log alpha interpolated linearly between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastscore.sde import SDE, log_one_plus_exp

__all__ = ["DiscreteVPSDE"]


@dataclass(frozen=True, eq=False)
class DiscreteVPSDE(SDE):
    """The variance-preserving SDE through the noise levels of a discrete schedule.

    Made by `linear`, `scaled_linear`, `cosine`, `sqrt`, or from given `from_betas` / `from_alphas_cumprod`. Networks
    trained on it take the index i of a level: `Convention` labels ``"timestep"`` and ``"rounded_timestep"``.

    Args:
        log_alphas: log alpha of the N levels, float64 of shape (N,), N >= 2, negative and falling.
        min_log_snr: levels below this log signal-to-noise ratio are dropped from the end and the others respaced, as
            the DPM-Solver authors do (-10.2, a lambda of -5.1: a cosine schedule loses 4 of its 1000 levels); None
            keeps all, also a last one without signal (alphas_cumprod = 0), which DDIM and DDPM alone can start from.
    """

    log_alphas: Tensor = field(repr=False)
    min_log_snr: float | None = -10.2

    def __post_init__(self) -> None:
        log_alphas = torch.as_tensor(self.log_alphas, dtype=torch.float64).detach().cpu()
        if log_alphas.ndim != 1 or len(log_alphas) < 2:
            raise ValueError(f"DiscreteVPSDE: the schedule must have shape (N,), N >= 2, got {tuple(log_alphas.shape)}")
        falling = torch.cat([log_alphas.new_zeros(1), log_alphas]).diff() < 0
        if not bool(falling.all()):
            raise ValueError(
                "DiscreteVPSDE: every beta must lie in (0, 1), so that alphas_cumprod falls from below 1; "
                f"it does not at index {int(falling.logical_not().nonzero()[0])}"
            )
        if self.min_log_snr is not None:
            log_snr = 2 * log_alphas - _log_one_minus_square(log_alphas)
            log_alphas = log_alphas[: max(int((log_snr >= self.min_log_snr).sum()), 2)]
        object.__setattr__(self, "log_alphas", log_alphas)

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float], min_log_snr: float | None = -10.2) -> DiscreteVPSDE:
        """From ``betas`` of shape (N,), each in (0, 1)."""
        return cls(0.5 * torch.log1p(-torch.as_tensor(betas, dtype=torch.float64)).cumsum(0), min_log_snr)

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor | Sequence[float], min_log_snr: float | None = -10.2
    ) -> DiscreteVPSDE:
        """From ``alphas_cumprod`` (alpha squared) of shape (N,), falling, in (0, 1)."""
        return cls(0.5 * torch.as_tensor(alphas_cumprod, dtype=torch.float64).log(), min_log_snr)

    @classmethod
    def linear(
        cls, n: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, min_log_snr: float | None = -10.2
    ) -> DiscreteVPSDE:
        """Betas evenly spaced (Ho et al., arXiv 2006.11239, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, _levels(n), dtype=torch.float64), min_log_snr)

    @classmethod
    def scaled_linear(
        cls, n: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, min_log_snr: float | None = -10.2
    ) -> DiscreteVPSDE:
        """Square roots of the betas evenly spaced (Rombach et al., arXiv 2112.10752, as in Stable Diffusion)."""
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), _levels(n), dtype=torch.float64)
        return cls.from_betas(roots.square(), min_log_snr)

    @classmethod
    def cosine(cls, n: int = 1000, min_log_snr: float | None = -10.2) -> DiscreteVPSDE:
        """Cosine schedule: alpha_bar cos^2 with offset 0.008, betas at most 0.999.

        Source: Nichol and Dhariwal, arXiv 2102.09672, eq. 17.
        """
        return cls.from_betas(
            _betas_of(lambda t: torch.cos((t + 0.008) / 1.008 * math.pi / 2).square(), n, 0.999), min_log_snr
        )

    @classmethod
    def sqrt(cls, n: int = 1000, min_log_snr: float | None = -10.2) -> DiscreteVPSDE:
        """The schedule of Diffusion-LM: alpha_bar is 1 - (t + 1e-4)^0.5, betas at most 0.999.

        Source: Li et al., arXiv 2205.14217, appendix A.
        """
        return cls.from_betas(_betas_of(lambda t: 1 - (t + 1e-4).sqrt(), n, 0.999), min_log_snr)

    @property
    def num_timesteps(self) -> int:
        """N, the number of noise levels."""
        return len(self.log_alphas)

    @property
    def sampling_eps(self) -> float:  # type: ignore[override]
        """The time of the first level, 1 / N; below it the schedule says nothing."""
        return 1 / self.num_timesteps

    @property
    def prior_std(self) -> float:
        return 1.0

    def times(self, timesteps: Tensor | Sequence[float]) -> Tensor:
        """Times ``(i + 1) / N`` of the levels i, float64."""
        return (torch.as_tensor(timesteps, dtype=torch.float64) + 1) / self.num_timesteps

    def log_alpha(self, t: float | Tensor) -> Tensor:
        index, fraction = self._segment(t)
        table = self.log_alphas.to(index.device)
        # a last level without signal is minus infinity
        return torch.where(fraction == 0, table[index], table[index] + fraction * (table[index + 1] - table[index]))

    def sigma(self, t: float | Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def drift_coefficient(self, t: float | Tensor) -> Tensor:
        # it jumps at a level: the slack keeps rounding of a time there from choosing the side
        index = (self._position(t) + 1e-9).floor().to(torch.int64).clamp(0, self.num_timesteps - 2)
        return (self.log_alphas.diff() * self.num_timesteps).to(index.device)[index]

    def diffusion(self, t: float | Tensor) -> Tensor:
        return (-2 * self.drift_coefficient(t)).sqrt()

    def log_snr(self, t: float | Tensor) -> Tensor:
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - _log_one_minus_square(log_alpha)

    def inverse_log_snr(self, log_snr: float | Tensor) -> Tensor:
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
        log_alpha = -0.5 * log_one_plus_exp(-log_snr)
        table = self.log_alphas.to(log_alpha.device)
        falling = torch.searchsorted(-table, -log_alpha.contiguous(), right=True) - 1
        index = falling.clamp(0, len(table) - 2)
        fraction = (log_alpha - table[index]) / (table[index + 1] - table[index])
        return (index + fraction + 1) / self.num_timesteps

    def chain_step(self, t: float | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The schedule's own chain for n = N, else Euler-Maruyama's."""
        if n != self.num_timesteps:
            return super().chain_step(t, n)
        index = (self._position(t) + 1e-9).floor().to(torch.int64).clamp(0, n - 1)
        log_ratio = torch.cat([self.log_alphas[:1], self.log_alphas.diff()]).to(index.device)[index]
        return torch.expm1(log_ratio), (-torch.expm1(2 * log_ratio)).sqrt()

    def _position(self, t: float | Tensor) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64) * self.num_timesteps - 1

    def _segment(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Index of the level at or before t, and the way to the next; the outer segments go on beyond the ends."""
        position = self._position(t)
        index = position.floor().to(torch.int64).clamp(0, self.num_timesteps - 2)
        return index, position - index


def _betas_of(alpha_bar: Callable[[Tensor], Tensor], n: int, largest: float) -> Tensor:
    values = alpha_bar(torch.linspace(0, 1, _levels(n) + 1, dtype=torch.float64))
    return (1 - values[1:] / values[:-1]).clamp(max=largest)


def _log_one_minus_square(log_alpha: Tensor) -> Tensor:
    return (-torch.expm1(2 * log_alpha)).log()


def _levels(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"DiscreteVPSDE: n, the number of noise levels, must be an integer >= 2, got {n!r}")
    return n

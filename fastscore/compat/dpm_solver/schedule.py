"""The noise schedule of dpm-solver, over the SDEs of fastscore."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.samplers.base import check_choice
from fastscore.schedule import DiscreteVPSDE
from fastscore.sde import VPSDE

__all__ = ["NoiseScheduleVP"]


class NoiseScheduleVP:
    """A variance-preserving schedule, ``x_t = alpha_t x_0 + sigma_t eps`` on t in (0, 1].

    Its functions take a floating-point tensor of any shape and return one like it, computed in float64. (The published
    ones flatten with ``"discrete"``, and compute in the dtype given.)

    Args:
        schedule: ``"discrete"``: N noise levels at t = (i + 1) / N with log alpha linear between them, made of `betas`
            or `alphas_cumprod`; ``"linear"``: the VP SDE with beta(t) linear.
        betas, alphas_cumprod: of shape (N,); one of them, with ``"discrete"``. Levels with a lambda below -5.1 are
            dropped from the end, and the others spaced anew.
        continuous_beta_0, continuous_beta_1: beta at t = 0 and 1, with ``"linear"``.
        dtype: of `t_array` and `log_alpha_array`.

    Attributes:
        sde: the schedule as a `fastscore.SDE`.
        T, total_N: 1.0, and the number of levels (1000 with ``"linear"``).
        t_array, log_alpha_array: with ``"discrete"``, the levels, (1, N).
        beta_0, beta_1: with ``"linear"``.

    Raises:
        ValueError: another schedule; no, or both, tables with ``"discrete"``; values that make no schedule.

    Source: Lu et al., arXiv 2206.00927, section 2.1 and appendix D.
    """

    def __init__(
        self,
        schedule: str = "discrete",
        betas: Tensor | None = None,
        alphas_cumprod: Tensor | None = None,
        continuous_beta_0: float = 0.1,
        continuous_beta_1: float = 20.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_choice("NoiseScheduleVP", "schedule", schedule, ("discrete", "linear"))
        self.schedule, self.T = schedule, 1.0
        self.sde = _sde(schedule, betas, alphas_cumprod, continuous_beta_0, continuous_beta_1)
        if isinstance(self.sde, DiscreteVPSDE):
            self.total_N = self.sde.num_timesteps
            self.t_array = self.sde.times(torch.arange(self.total_N)).reshape(1, -1).to(dtype)
            self.log_alpha_array = self.sde.log_alphas.reshape(1, -1).to(dtype)
        else:
            self.total_N, self.beta_0, self.beta_1 = 1000, continuous_beta_0, continuous_beta_1

    def marginal_log_mean_coeff(self, t: Tensor) -> Tensor:
        """log alpha_t."""
        return _at("marginal_log_mean_coeff", self.sde.log_alpha, t)

    def marginal_alpha(self, t: Tensor) -> Tensor:
        """alpha_t."""
        return _at("marginal_alpha", self.sde.alpha, t)

    def marginal_std(self, t: Tensor) -> Tensor:
        """sigma_t."""
        return _at("marginal_std", self.sde.sigma, t)

    def marginal_lambda(self, t: Tensor) -> Tensor:
        """log(alpha_t / sigma_t)."""
        return _at("marginal_lambda", lambda time: 0.5 * self.sde.log_snr(time), t)

    def inverse_lambda(self, lamb: Tensor) -> Tensor:
        """The time at which log(alpha / sigma) is `lamb`."""
        return _at("inverse_lambda", lambda value: self.sde.inverse_log_snr(2 * value), lamb)


def _sde(
    schedule: str, betas: Tensor | None, alphas_cumprod: Tensor | None, beta_0: float, beta_1: float
) -> VPSDE | DiscreteVPSDE:
    if schedule == "linear":
        if not 0 < beta_0 <= beta_1:
            raise ValueError(
                "NoiseScheduleVP: continuous_beta_0 and continuous_beta_1 must satisfy 0 < continuous_beta_0 <= "
                f"continuous_beta_1, got {beta_0!r} and {beta_1!r}"
            )
        return VPSDE(beta_0, beta_1)
    if (betas is None) == (alphas_cumprod is None):
        raise ValueError(
            "NoiseScheduleVP: schedule='discrete' needs either betas or alphas_cumprod, "
            f"got {'neither' if betas is None else 'both'}"
        )
    if betas is not None:
        return DiscreteVPSDE.from_betas(betas)
    assert alphas_cumprod is not None
    return DiscreteVPSDE.from_alphas_cumprod(alphas_cumprod)


def _at(name: str, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"NoiseScheduleVP.{name}: the argument must be a floating-point tensor, got {got}")
    return function(value.to(torch.float64)).to(value.dtype)

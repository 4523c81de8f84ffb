"""Falling noise levels with a zero at the end, of shape (n + 1,) in torch's default dtype.

Computed in float64 and rounded once; k-diffusion computes them in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastscore.samplers.base import check_count, check_number

__all__ = ["get_sigmas_exponential", "get_sigmas_karras", "get_sigmas_polyexponential", "get_sigmas_vp"]

Device = torch.device | str


def get_sigmas_karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Device = "cpu") -> Tensor:
    """Even in ``sigma^(1 / rho)`` (Karras et al., arXiv 2206.00364, eq. 5).

    Raises:
        ValueError, TypeError: n is below 1, rho not positive, or not ``0 < sigma_min <= sigma_max``.
    """
    _check("get_sigmas_karras", n, sigma_min, sigma_max, rho)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _with_zero((first + _ramp(n) * (last - first)) ** rho, device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Device = "cpu") -> Tensor:
    """Even in log sigma; errors as of `get_sigmas_karras`."""
    _check("get_sigmas_exponential", n, sigma_min, sigma_max, 1.0)
    return _with_zero(_exponential(_ramp(n), sigma_min, sigma_max), device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Device = "cpu"
) -> Tensor:
    """Log sigma falls as the power `rho` of a ramp from 1 to 0; errors as of `get_sigmas_karras`."""
    _check("get_sigmas_polyexponential", n, sigma_min, sigma_max, rho)
    return _with_zero(_exponential(1 - (1 - _ramp(n)) ** rho, sigma_min, sigma_max), device)


def get_sigmas_vp(
    n: int, beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3, device: Device = "cpu"
) -> Tensor:
    """``sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)`` at times from 1 to eps_s (arXiv 2206.00364, table 1).

    Raises:
        ValueError, TypeError: n is below 1, a beta is not positive, or eps_s not in (0, 1).
    """
    name = "get_sigmas_vp"
    check_count(name, "n", n, 1)
    check_number(name, "beta_d", beta_d, above=0.0)
    check_number(name, "beta_min", beta_min, above=0.0)
    check_number(name, "eps_s", eps_s, above=0.0, below=1.0)
    t = 1 + _ramp(n) * (eps_s - 1)
    return _with_zero(torch.expm1(beta_d * t.square() / 2 + beta_min * t).sqrt(), device)


def _check(owner: str, n: int, sigma_min: float, sigma_max: float, rho: float) -> None:
    check_count(owner, "n", n, 1)
    check_number(owner, "sigma_min", sigma_min, above=0.0)
    check_number(owner, "sigma_max", sigma_max, least=sigma_min)
    check_number(owner, "rho", rho, above=0.0)


def _ramp(n: int) -> Tensor:
    return torch.linspace(0.0, 1.0, n, dtype=torch.float64)


def _exponential(ramp: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    first, last = math.log(sigma_max), math.log(sigma_min)
    return (first + ramp * (last - first)).exp()


def _with_zero(sigmas: Tensor, device: Device) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device, torch.get_default_dtype())

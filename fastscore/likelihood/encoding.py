"""Codes of images: the probability-flow ODE from data to noise, and back."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastscore import _checks
from fastscore.samplers.adaptive import AdaptiveInfo, Running
from fastscore.samplers.base import SampleInfo, Sampler, check_choice, check_number
from fastscore.samplers.ddim import DDIMInverseSampler, DDIMSampler
from fastscore.samplers.ode import ODE_METHODS, ODESampler
from fastscore.samplers.per_sample import Network, Points
from fastscore.samplers.rk45 import RK45Sampler
from fastscore.samplers.table import Table
from fastscore.sde import SDE

__all__ = ["decode", "encode"]


def encode(
    sde: SDE,
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    solver: str = "rk45",
    progress: bool = False,
    return_info: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, SampleInfo]:
    """Computes the latent of every sample: where the probability-flow ODE leads it from t = eps to 1.

    `decode` with the same arguments leads back, up to the error of the solver, which the flow may multiply: "rk45"
    keeps the error of a step to its tolerance; by fixed steps the difference falls with the power of the step that the
    method has, 1 for "ddim". With ``sde.until(t)`` the latent is the state at t, which is closer to the image.

    Args:
        sde: the forward SDE.
        model: called as ``model(x, labels)``, as for a `Sampler`.
        x: the data (B, ...), which is taken as the state at eps.
        solver: ``"rk45"``: adaptive steps, see `RK45Sampler`; ``"euler"``, ``"heun"`` or ``"rk4"``: fixed steps in
            time, see `ODESampler`; ``"ddim"``: fixed steps that are exact for a network of constant output, see
            `DDIMInverseSampler`.
        progress: show a progress bar.
        return_info: also return a `SampleInfo`.
        options: of the solver's class: ``eps`` and ``convention``; ``rtol``, ``atol``, ``norm``, ``max_steps`` and
            ``first_step`` of "rk45"; ``steps``, ``spacing`` and ``clip`` of the others.

    Returns:
        Latents like x, of the law of the prior where x is of that of the data; with ``return_info`` a pair.

    Raises:
        ValueError, TypeError: an argument does not fit, or the solver has no such option; the message names it.
        NonFiniteError: the state is not finite.

    Source: Song et al., arXiv 2011.13456, section 4.3 and appendix D.3; "ddim": Song et al., arXiv 2010.02502,
    section 4.3.
    """
    sampler = _sampler("encode", _ENCODERS, solver, sde, model, options)
    _checks.is_state("encode", "x", x)
    latent, info = sampler.sample(x, progress=progress, return_info=True)
    if isinstance(info, AdaptiveInfo):
        info = replace(info, t=_reversed(sampler, info.t))
    return (latent, info) if return_info else latent


def decode(
    sde: SDE,
    model: Callable[[Tensor, Tensor], Tensor],
    latent: Tensor,
    *,
    solver: str = "rk45",
    temperature: float = 1.0,
    progress: bool = False,
    return_info: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, SampleInfo]:
    """Computes the sample of every latent: where the probability-flow ODE leads it from t = 1 to eps.

    Args:
        sde, model, solver, progress, return_info, options: see `encode`.
        latent: (B, ...), left as it is.
        temperature: the latents are multiplied by it first, at least 0; below 1 the samples come nearer to what is
            likely, and have less variety.

    Returns:
        Samples like latent; with ``return_info`` a pair.

    Raises:
        ValueError, TypeError, NonFiniteError: see `encode`.

    Source: see `encode`.
    """
    sampler = _sampler("decode", _DECODERS, solver, sde, model, options)
    _checks.is_state("decode", "latent", latent)
    check_number("decode", "temperature", temperature, least=0.0)
    return sampler.sample(latent * temperature, progress=progress, return_info=return_info)


class _RK45Encoder(RK45Sampler):
    """`RK45Sampler` the other way: its time u runs down from 1 to eps, while t = 1 + eps - u runs up."""

    def _slopes(self, times: Tensor, net: Network) -> tuple[tuple[Tensor, Tensor], Points]:
        (p, q), points = super()._slopes(_reversed(self, times), net)
        return (-p, -q), points

    def _non_finite(self, index: int, run: Running, failed: Tensor) -> str:
        at = float(_reversed(self, run.t[failed]).min())
        return f"encode: the error of trial {index} from t = {at:.6g} is not finite: the network's output or x is not"

    def _warn(self, done: object) -> None:
        warnings.warn(
            f"encode: some samples have not reached t = {self.sde.T:g} within {self.max_steps} trials (max_steps), or "
            "need steps too short to move; they are returned as they are",
            RuntimeWarning,
            stacklevel=6,
        )


class _ODEEncoder(ODESampler):
    """`ODESampler` the other way, along the same times."""

    def _tabulate(self, table: Table) -> None:
        if self._path[-1].sigma == 0:
            raise ValueError(f"encode: spacing must end where there is noise, got t = {self._path[-1].t:g}")
        self._follow(table, self._path[::-1])


def _reversed(sampler: Sampler, u: Tensor) -> Tensor:
    return sampler.eps + (sampler.sde.T - u)


_ENCODERS: dict[str, tuple[type[Sampler], dict[str, Any]]] = {
    "rk45": (_RK45Encoder, {"denoise": False}),
    **{method: (_ODEEncoder, {"method": method}) for method in ODE_METHODS},
    "ddim": (DDIMInverseSampler, {}),
}
_DECODERS: dict[str, tuple[type[Sampler], dict[str, Any]]] = {
    "rk45": (RK45Sampler, {"denoise": False}),
    **{method: (ODESampler, {"method": method}) for method in ODE_METHODS},
    "ddim": (DDIMSampler, {"eta": 0.0, "denoise": False, "clipped_noise": True}),
}


def _sampler(
    owner: str,
    solvers: dict[str, tuple[type[Sampler], dict[str, Any]]],
    solver: str,
    sde: SDE,
    model: Callable[[Tensor, Tensor], Tensor],
    options: dict[str, Any],
) -> Sampler:
    check_choice(owner, "solver", solver, tuple(solvers))
    make, fixed = solvers[solver]
    known = [name for name in inspect.signature(make).parameters if name not in ("sde", "model", *fixed)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{owner}: solver={solver!r} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    return make(sde, model, **fixed, **options)

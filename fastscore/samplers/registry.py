"""Samplers by name: the ones that people ask for, as a class and the options that make it.

`names` lists them, `sampler` makes one. Every option of the class can be given on top of the name.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastscore.samplers.adaptive_sde import AdaptiveSDESampler
from fastscore.samplers.ancestral import EulerAncestralSampler
from fastscore.samplers.base import Sampler
from fastscore.samplers.consistency import ConsistencySampler
from fastscore.samplers.ddim import DDIMSampler
from fastscore.samplers.ddpm import DDPMSampler
from fastscore.samplers.dpm_adaptive import DPMSolverAdaptive
from fastscore.samplers.dpm_solver import DPMSolverSampler
from fastscore.samplers.edm import EDMSampler
from fastscore.samplers.euler_maruyama import EulerMaruyamaSampler
from fastscore.samplers.langevin import AnnealedLangevinSampler, LangevinSampler
from fastscore.samplers.linear_multistep import LMSSampler
from fastscore.samplers.ode import ODESampler
from fastscore.samplers.predictor_corrector import PCSampler
from fastscore.samplers.rk45 import RK45Sampler
from fastscore.samplers.sde_dpm_solver import SDEDPMSolver2SSampler, SDEDPMSolverSampler
from fastscore.samplers.unipc import UniPCSampler
from fastscore.sde import SDE

__all__ = ["Entry", "describe", "names", "sampler"]


@dataclass(frozen=True)
class Entry:
    """A sampler with a name.

    Attributes:
        make: the class.
        summary: one line.
        options: what the name stands for; given options override it.
        calls: network calls, in terms of the number of steps N.
    """

    make: Callable[..., Sampler]
    summary: str
    calls: str = "N"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> list[str]:
        """The options that the class takes, in order."""
        return [name for name in inspect.signature(self.make).parameters if name not in ("sde", "model")]

    @property
    def required(self) -> list[str]:
        """The options without which it cannot be made."""
        parameters = inspect.signature(self.make).parameters
        return [n for n in self.accepted if parameters[n].default is inspect.Parameter.empty and n not in self.options]


def _pc(summary: str, predictor: str, corrector: str, calls: str = "N") -> Entry:
    return Entry(PCSampler, summary, calls, {"predictor": predictor, "corrector": corrector})


def _dpm(summary: str, order: int, method: str, algorithm: str) -> Entry:
    options = {"order": order, "method": method, "algorithm": algorithm}
    if method == "multistep" and order == 3:
        options["solver_type"] = "taylor"  # the other one has order 2
    return Entry(DPMSolverSampler, summary, "N", options)


_ENTRIES: dict[str, Entry] = {
    # the score-SDE paper
    "pc": _pc("predictor-corrector: reverse diffusion and Langevin", "reverse_diffusion", "langevin", "2 N"),
    "euler-maruyama": Entry(EulerMaruyamaSampler, "Euler-Maruyama for the reverse-time SDE"),
    "reverse-diffusion": _pc("the forward chain's steps run backward", "reverse_diffusion", "none"),
    "ancestral": _pc("ancestral sampling of the N-step chain (DDPM, SMLD)", "ancestral", "none"),
    "langevin-corrector": _pc("Langevin corrector alone, at falling times", "none", "langevin"),
    "rk45": Entry(RK45Sampler, "probability flow by adaptive Dormand-Prince 5(4)", "adaptive"),
    # probability flow in t, fixed step
    "ode-euler": Entry(ODESampler, "probability flow in t by Euler's method", "N", {"method": "euler"}),
    "ode-heun": Entry(ODESampler, "probability flow in t by Heun's method", "2 N", {"method": "heun"}),
    "ode-rk4": Entry(ODESampler, "probability flow in t by the classical Runge-Kutta method", "4 N", {"method": "rk4"}),
    # DDPM and DDIM
    "ddpm": Entry(DDPMSampler, "DDPM's posterior on any selection of levels; fixed or learned variance"),
    "ddim": Entry(DDIMSampler, "DDIM; eta=0 deterministic, eta=1 as DDPM"),
    # EDM and k-diffusion
    "edm": Entry(EDMSampler, "Heun in the noise level (EDM), deterministic", "2 N - 1"),
    "edm-churn": Entry(
        EDMSampler,
        "the stochastic sampler of EDM, churn as published for ImageNet-64",
        "2 N - 1",
        {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
    ),
    "edm-euler": Entry(EDMSampler, "Euler in the noise level", "N", {"order": 1}),
    "dpm-2": Entry(EDMSampler, "midpoint in the log noise level", "2 N - 1", {"alpha": 0.5, "stage_rho": math.inf}),
    "euler-ancestral": Entry(EulerAncestralSampler, "Euler below the next noise level, noise up to it"),
    "dpm-2-ancestral": Entry(
        EulerAncestralSampler, "midpoint below the next noise level, noise up to it", "2 N - 1", {"order": 2}
    ),
    # DPM-Solver
    "dpm-solver-1": _dpm("DPM-Solver of order 1 (DDIM)", 1, "singlestep", "dpmsolver"),
    "dpm-solver-2s": _dpm("DPM-Solver of order 2, singlestep", 2, "singlestep", "dpmsolver"),
    "dpm-solver-3s": _dpm("DPM-Solver of order 3, singlestep (DPM-Solver-fast)", 3, "singlestep", "dpmsolver"),
    "dpm-solver-2m": _dpm("DPM-Solver of order 2, multistep", 2, "multistep", "dpmsolver"),
    "dpm-solver-3m": _dpm(
        "DPM-Solver of order 3, multistep (solver_type='midpoint': as published)", 3, "multistep", "dpmsolver"
    ),
    "dpmpp-2s": _dpm("DPM-Solver++ of order 2, singlestep", 2, "singlestep", "dpmsolver++"),
    "dpmpp-3s": _dpm("DPM-Solver++ of order 3, singlestep", 3, "singlestep", "dpmsolver++"),
    "dpmpp-2m": _dpm("DPM-Solver++ of order 2, multistep", 2, "multistep", "dpmsolver++"),
    "dpmpp-3m": _dpm(
        "DPM-Solver++ of order 3, multistep (solver_type='midpoint': as published)", 3, "multistep", "dpmsolver++"
    ),
    "dpm-adaptive-12": Entry(
        DPMSolverAdaptive, "DPM-Solver with error control, orders 1 and 2", "adaptive", {"order": 2}
    ),
    "dpm-adaptive-23": Entry(
        DPMSolverAdaptive, "DPM-Solver with error control, orders 2 and 3", "adaptive", {"order": 3}
    ),
    # SDE solvers
    "dpmpp-1-sde": Entry(SDEDPMSolverSampler, "SDE-DPM-Solver++ of order 1", "N", {"order": 1}),
    "dpmpp-2m-sde": Entry(SDEDPMSolverSampler, "SDE-DPM-Solver++ of order 2, multistep", "N", {"order": 2}),
    "dpmpp-3m-sde": Entry(SDEDPMSolverSampler, "SDE-DPM-Solver++ of order 3, multistep", "N", {"order": 3}),
    "dpmpp-2s-sde": Entry(SDEDPMSolver2SSampler, "SDE-DPM-Solver++ of order 2, singlestep", "2 N - 1"),
    "dpmpp-2s-ancestral": Entry(
        SDEDPMSolver2SSampler,
        "DPM-Solver++(2S) below the next noise level, noise up to it",
        "2 N - 1",
        {"stage_noise": "none"},
    ),
    "adaptive-sde": Entry(AdaptiveSDESampler, "the reverse-time SDE with error control (Gotta go fast)", "adaptive"),
    # other multistep methods
    "unipc-1": Entry(UniPCSampler, "UniPC, predictor of order 1", "N", {"order": 1}),
    "unipc-2": Entry(UniPCSampler, "UniPC, predictor of order 2", "N", {"order": 2}),
    "unipc-3": Entry(UniPCSampler, "UniPC, predictor of order 3", "N", {"order": 3}),
    "lms-2": Entry(LMSSampler, "Adams-Bashforth in the noise level, order 2", "N", {"order": 2}),
    "lms-3": Entry(LMSSampler, "Adams-Bashforth in the noise level, order 3", "N", {"order": 3}),
    "lms": Entry(LMSSampler, "Adams-Bashforth in the noise level, order 4 (k-diffusion's LMS)", "N", {"order": 4}),
    # Langevin dynamics and consistency models
    "langevin": Entry(LangevinSampler, "Langevin dynamics at one time"),
    "annealed-langevin": Entry(AnnealedLangevinSampler, "Langevin dynamics at falling noise levels (NCSN)", "5 N + 1"),
    "consistency": Entry(ConsistencySampler, "a consistency model, in one step or several"),
}


def names() -> list[str]:
    """The names that `sampler` knows."""
    return list(_ENTRIES)


def describe(name: str) -> Entry:
    """What a name stands for.

    Raises:
        ValueError: there is no such sampler; the message has the nearest names.
    """
    if name not in _ENTRIES:
        near = difflib.get_close_matches(str(name), _ENTRIES, 3) or list(_ENTRIES)
        raise ValueError(f"there is no sampler {name!r}; did you mean {', '.join(near)}? names() lists all")
    return _ENTRIES[name]


def sampler(name: str, sde: SDE, model: Callable[[Tensor, Tensor], Tensor], **options: Any) -> Sampler:
    """A sampler by name.

    Args:
        name: one of `names`.
        sde, model: see `Sampler`.
        options: for the class behind the name, such as ``steps``, ``eps``, ``clip`` or ``convention``.

    Raises:
        ValueError: there is no such sampler, or a value is not accepted.
        TypeError: the sampler has no such option, or needs one that is missing.
    """
    entry = describe(name)
    unknown = [option for option in options if option not in entry.accepted]
    if unknown:
        raise TypeError(f"{name} has no option {unknown[0]!r}; it takes {', '.join(entry.accepted)}")
    missing = [option for option in entry.required if option not in options]
    if missing:
        raise TypeError(f"{name} needs the option {missing[0]!r}")
    return entry.make(sde, model, **{**entry.options, **options})

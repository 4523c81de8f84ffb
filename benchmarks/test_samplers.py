"""Samplers beside those of diffusers, k-diffusion, torchdiffeq and scipy, and beside the reference of this package,
which has an operator for each term of the formulas; with a network that costs next to nothing.

Each contender draws one batch from a given start, the set-up of its schedule included, with the same number of network
calls (adaptive ones: to the same tolerance); times are per network call. Where no noise is involved, the results are
compared before anything is timed.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, TorchNoise
from fastscore.reference import samplers as reference
from fastscore.samplers import FixedStepSampler
from fastscore.testing.inputs import make_input
from fastscore.testing.peers import k_diffusion_sampling
from fastscore.testing.timing import Case

CONTENDERS = ("peer", "fastscore")
QUICK = tuple(
    f"-{sampler}-(64, 3, 32, 32)]"
    for sampler in (
        "pc-ScoreSdeVeScheduler",
        "dpmpp-2m-sample_dpmpp_2m",
        "dpmpp-2m-DPMSolverMultistepScheduler",
        "pc-pc_sampler",
        "dpmpp-2m-dpm_solver_sampler",
        "rk45-solve_ivp",
        "rk45-dopri5",
        "ddim-DDIMScheduler",
    )
)
SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (256, 3, 32, 32))
STEPS = 20
SIGMAS = (0.01, 80.0)
Network = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Duel:
    """A sampler of the registry and its peer.

    Attributes:
        name, options: for `fastscore.sampler`.
        peer: (network, start) -> samples.
        about: who the peer is.
        agrees: both compute the same up to float32, given a deterministic network.
        smooth: the step sizes depend on the network, which must then be a function.
    """

    name: str
    options: dict[str, Any]
    peer: Callable[[Network, Tensor], Tensor]
    about: str
    agrees: bool = True
    smooth: bool = False
    sde: fastscore.SDE = field(default_factory=lambda: VESDE(*SIGMAS))
    convention: Convention = field(default_factory=lambda: Convention("denoised", "sigma"))


def in_turn(shape: tuple[int, ...], count: int, device: torch.device) -> Network:
    """A network that costs nothing: one of the tensors that it holds, in turn; near at hand, as an output just made."""
    held = itertools.cycle([make_input(shape, device=device, seed=i) for i in range(count)])
    return lambda x, label: next(held)


def smooth(x: Tensor, label: Any) -> Tensor:
    return torch.tanh(x)


# ---------------------------------------------------------------------------------------------------- k-diffusion


def k_peer(function: str, **options: Any) -> Callable[[Network, Tensor], Tensor]:
    def run(network: Network, x: Tensor) -> Tensor:
        sampling = k_diffusion_sampling()
        sigmas = sampling.get_sigmas_karras(STEPS, *SIGMAS, device=x.device)
        return getattr(sampling, function)(network, x, sigmas, disable=True, **options)

    return run


def k_adaptive(network: Network, x: Tensor) -> Tensor:
    return k_diffusion_sampling().sample_dpm_adaptive(network, x, *SIGMAS, disable=True, order=3)


def k(name: str, function: str, agrees: bool = True, **options: Any) -> Duel:
    ours = {"steps": STEPS, "spacing": "karras", "eps": 1e-12} | options
    return Duel(name, ours, k_peer(function), f"k-diffusion `{function}`", agrees)


# ---------------------------------------------------------------------------------------------------- diffusers

LINEAR = DiscreteVPSDE.linear()


def diffusers_peer(scheduler_name: str, **config: Any) -> Callable[[Network, Tensor], Tensor]:
    import diffusers

    # the tables of the network's training, not the defaults of Stable Diffusion
    scheduler = getattr(diffusers, scheduler_name)(1000, 1e-4, 0.02, "linear", **config)

    def run(network: Network, x: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS, device=x.device)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        return x

    return run


def linspace_times() -> Tensor:
    """The times of diffusers' spacing "linspace" without its last point."""
    return LINEAR.times(np.linspace(0, 999, STEPS + 1).round()[::-1][:-1].copy())


def df(name: str, scheduler: str, ours: dict[str, Any], agrees: bool = True, **config: Any) -> Duel:
    return Duel(
        name,
        {"steps": STEPS} | ours,
        diffusers_peer(scheduler, **config),
        f"diffusers `{scheduler}`",
        agrees,
        sde=LINEAR,
        convention=Convention("noise", "rounded_timestep"),
    )


def score_sde_ve(network: Network, x: Tensor) -> Tensor:
    import diffusers

    scheduler = diffusers.ScoreSdeVeScheduler(STEPS, snr=0.16, sigma_max=50.0)
    scheduler.set_timesteps(STEPS, device=x.device)
    scheduler.set_sigmas(STEPS)
    for i, t in enumerate(scheduler.timesteps):
        label = scheduler.sigmas[i] * torch.ones(x.shape[0], device=x.device)
        x = scheduler.step_correct(network(x, label), x).prev_sample
        x = scheduler.step_pred(network(x, label), t, x).prev_sample
    return x


# -------------------------------------------------------------------------------------------------- the reference


def reference_pc(network: Network, x: Tensor) -> Tensor:
    convention = Convention("score", "sigma")
    options = {"predictor": "reverse_diffusion", "corrector": "langevin", "steps": STEPS, "eps": 1e-5}
    return reference.pc_sampler(VESDE(), network, x, TorchNoise(), convention, **options)


def reference_dpm_solver(network: Network, x: Tensor) -> Tensor:
    convention = Convention("noise", "rounded_timestep")
    return reference.dpm_solver_sampler(LINEAR, network, x, TorchNoise(), convention, steps=STEPS)


def reference_rk45(network: Network, x: Tensor) -> Tensor:
    return reference.rk45_sampler(VPSDE(), network, x, Convention("score", "time"), **RK45)[0]


# ---------------------------------------------------------------------------------------------------- ODE solvers


def drift(network: Network) -> Callable[[Tensor, Tensor], Tensor]:
    def function(t: Tensor, x: Tensor) -> Tensor:
        return -0.5 * (0.1 + t * 19.9) * (x + network(x, t))

    return function


def torchdiffeq_peer(method: str, **options: Any) -> Callable[[Network, Tensor], Tensor]:
    def run(network: Network, x: Tensor) -> Tensor:
        from torchdiffeq import odeint

        times = torch.linspace(1, 1e-3, 2 if options else STEPS + 1, device=x.device)
        return odeint(drift(network), x, times, method=method, **options)[-1]

    return run


def scipy_peer(network: Network, x: Tensor) -> Tensor:
    from scipy.integrate import solve_ivp

    function = drift(network)

    def flat(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y.reshape(x.shape)).to(x)
        return function(torch.tensor(t, device=x.device), state).cpu().numpy().reshape(-1)

    y = solve_ivp(flat, (1.0, 1e-3), x.cpu().numpy().reshape(-1), rtol=1e-5, atol=1e-5, method="RK45").y[:, -1]
    return torch.from_numpy(y.reshape(x.shape)).to(x)


def ode(name: str, ours: dict[str, Any], peer: Any, about: str, agrees: bool = True) -> Duel:
    adaptive = "steps" not in ours
    return Duel(name, ours, peer, about, agrees, adaptive, VPSDE(), Convention("score", "time"))


RK45 = {"rtol": 1e-5, "atol": 1e-5, "norm": "batch"}
DUELS = [
    k("edm-euler", "sample_euler"),
    k("edm", "sample_heun"),
    k("dpm-2", "sample_dpm_2"),
    k("euler-ancestral", "sample_euler_ancestral", agrees=False),
    k("dpm-2-ancestral", "sample_dpm_2_ancestral", agrees=False),
    k("dpmpp-2m", "sample_dpmpp_2m", denoise=True),
    k("lms", "sample_lms"),
    k("dpmpp-2s-ancestral", "sample_dpmpp_2s_ancestral", agrees=False),
    k("dpmpp-2s-sde", "sample_dpmpp_sde", agrees=False),
    k("dpmpp-2m-sde", "sample_dpmpp_2m_sde", agrees=False),
    k("dpmpp-3m-sde", "sample_dpmpp_3m_sde", agrees=False),
    Duel(
        "dpm-adaptive-23",
        {"eps": 1e-12, "norm": "batch", "atol": 0.0078, "rtol": 0.05},
        k_adaptive,
        "k-diffusion `sample_dpm_adaptive`",
        agrees=False,
        smooth=True,
    ),
    df("ddpm", "DDPMScheduler", {"spacing": "leading", "clip": 1.0}, agrees=False),
    df("ddim", "DDIMScheduler", {"spacing": "leading"}, clip_sample=False),
    df("dpmpp-2m", "DPMSolverMultistepScheduler", {"spacing": linspace_times(), "denoise": True}),
    df(
        "dpmpp-3m",
        "DPMSolverMultistepScheduler",
        {"spacing": linspace_times(), "denoise": True, "solver_type": "midpoint"},
        solver_order=3,
    ),
    df("dpmpp-2s", "DPMSolverSinglestepScheduler", {"spacing": linspace_times(), "denoise": True}, agrees=False),
    df("unipc-2", "UniPCMultistepScheduler", {"spacing": linspace_times()}, agrees=False),
    df("unipc-3", "UniPCMultistepScheduler", {"spacing": linspace_times()}, agrees=False, solver_order=3),
    Duel(
        "pc",
        {"steps": STEPS},
        score_sde_ve,
        "diffusers `ScoreSdeVeScheduler`",
        agrees=False,
        sde=VESDE(),
        convention=Convention("score", "sigma"),
    ),
    ode("ode-euler", {"steps": STEPS}, torchdiffeq_peer("euler"), "torchdiffeq `euler`"),
    ode("ode-rk4", {"steps": STEPS}, torchdiffeq_peer("rk4"), "torchdiffeq `rk4` (3/8 rule)", agrees=False),
    ode("rk45", RK45, torchdiffeq_peer("dopri5", rtol=1e-5, atol=1e-5), "torchdiffeq `dopri5`", agrees=False),
    ode("rk45", RK45, scipy_peer, "scipy `solve_ivp` RK45"),
    Duel(
        "pc",
        {"steps": STEPS},
        reference_pc,
        "reference `pc_sampler`",
        agrees=False,
        sde=VESDE(),
        convention=Convention("score", "sigma"),
    ),
    Duel(
        "dpmpp-2m",
        {"steps": STEPS},
        reference_dpm_solver,
        "reference `dpm_solver_sampler`",
        sde=LINEAR,
        convention=Convention("noise", "rounded_timestep"),
    ),
    ode("rk45", RK45, reference_rk45, "reference `rk45_sampler`"),
]


def calls_of(run: Callable[[Network, Tensor], object], network: Network, x: Tensor) -> int:
    count = 0

    def counting(x: Tensor, label: Any) -> Tensor:
        nonlocal count
        count += 1
        return network(x, label)

    run(counting, x)
    return count


def _case(duel: Duel, shape: tuple[int, ...], device: torch.device) -> Case:
    start = make_input(shape, device=device, seed=50) * duel.sde.prior_std
    make = {"sde": duel.sde, "convention": duel.convention} | duel.options
    network = smooth
    if not duel.smooth:  # as many as are in use at a time, and the new one
        network = in_turn(shape, 1 + fastscore.sampler(duel.name, model=smooth, **make).plan().memory, device)
    samplers = {function: fastscore.sampler(duel.name, model=function, **make) for function in (network, smooth)}

    def check() -> None:
        """Both compute the same where they should; ours ran its kernels (see `kernels` in the JSON)."""
        expected, got = duel.peer(smooth, start), samplers[smooth].sample(start)
        assert got.shape == expected.shape
        assert bool(torch.isfinite(got).all())
        if duel.agrees:
            error = float((got - expected).abs().max() / expected.abs().max())
            assert error < (2e-4 if duel.smooth else 2e-5), f"{duel.name} and {duel.about} differ by {error:.2e}"

    steps = {"peer": calls_of(duel.peer, network, start)}
    sampler = samplers[network]
    if isinstance(sampler, FixedStepSampler):
        steps["fastscore"] = sampler.plan().nfe
        assert steps["fastscore"] == steps["peer"], f"{duel.name}: {steps}"
    else:
        steps["fastscore"] = int(sampler.sample(start, return_info=True)[1].nfe.max())
    return Case(
        duel.name if sum(other.name == duel.name for other in DUELS) == 1 else f"{duel.name} / {duel.about.split()[0]}",
        str(shape),
        {"peer": lambda: duel.peer(network, start), "fastscore": lambda: samplers[network].sample(start)},
        check,
        start,
        steps=steps,
        about=duel.about,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("duel", DUELS, ids=lambda duel: f"{duel.name}-{duel.about.split('`')[1]}")
def test_sampler(report, duel, shape, contender, device):
    report(_case(duel, shape, device), contender)

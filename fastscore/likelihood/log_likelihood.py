"""The exact log-likelihood of data under the probability-flow ODE of a score network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.likelihood.divergence import MODES, standard_error
from fastscore.likelihood.flow import AdaptiveFlow, AugmentedSlope, fixed_step_flow
from fastscore.likelihood.probes import Probes
from fastscore.noise import Noise, as_noise
from fastscore.samplers.base import check_choice, check_count, check_number, evaluating
from fastscore.samplers.grid import time_grid
from fastscore.samplers.loop import checked_result
from fastscore.samplers.ode import ODE_METHODS
from fastscore.schedule import DiscreteVPSDE
from fastscore.score import Convention, convention_of
from fastscore.sde import SDE

__all__ = ["Likelihood", "log_likelihood"]

_OWNER = "log_likelihood"


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of every sample of a batch, in nats; float64 (B,) unless noted.

    Attributes:
        log_likelihood: ``log_prior + log_change``; NaN where the solver did not arrive.
        standard_error: of it over the probes: 0 for the exact trace, NaN for one probe, which has none. The error of
            the solver is not in it.
        log_prior: log-density of the latent under the prior of the SDE.
        log_change: the integral of the divergence of the flow.
        latent: the state at t = 1, (B, ...), in the dtype of the data.
        nfe: network evaluations, int64 (B,).
    """

    log_likelihood: Tensor
    standard_error: Tensor
    log_prior: Tensor
    log_change: Tensor
    latent: Tensor
    nfe: Tensor


@torch.no_grad()
def log_likelihood(
    sde: SDE,
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    solver: str = "rk45",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    norm: str = "sample",
    max_steps: int = 1000,
    steps: int | None = None,
    spacing: str | Tensor = "log_snr",
    method: str = "hutchinson",
    mode: str = "vjp",
    probes: int = 1,
    kind: str = "rademacher",
    seed: int = 0,
    noise: Noise | None = None,
    eps: float | None = None,
    convention: Convention | None = None,
    progress: bool = False,
) -> Likelihood:
    """Computes log p(x) by the instantaneous change of variables along the probability-flow ODE, from t = eps to 1.

    ``log p_eps(x) = log prior(x_1) + integral of div(dx/dt) dt`` (Song et al., arXiv 2011.13456, eq. 39 and appendix
    D.2; Chen et al., arXiv 1806.07366, eq. 8). The network is evaluated once per slope, and the divergence comes out of
    that evaluation. State and integrals are float64; the same probes serve a whole solve.

    The density is that of the data with the noise of t = eps on it. With a larger eps the flow misses what happens
    below and the value is too low for data of fine structure; far below the published 1e-5 a network is asked what it
    was never trained on, and the value is noise.

    Args:
        sde: the forward SDE.
        model: called as ``model(x, labels)``, as for a `Sampler`; a sample's output must depend on it alone.
        x: the data (B, ...) on the scale the network was trained on: float32, float64, bfloat16 or float16.
        solver: ``"rk45"``: Dormand and Prince's pair with adaptive steps; ``"euler"``, ``"heun"`` or ``"rk4"``: fixed
            steps, with 1, 2 or 4 evaluations each.
        rtol, atol, norm, max_steps: of "rk45", see `RK45Sampler`. ``norm="sample"``: a sample's numbers do not depend
            on its batch, and it leaves the batch when it arrives; ``"batch"``: the steps of scipy on the batch with its
            integrals, as published. The integrals share the tolerance.
        steps: number of fixed steps, which needs to be given for them, and only for them.
        spacing: of fixed steps, see `ODESampler`. Data of fine structure need most of them near t = eps: for digits
            of `mnist32`, 25 steps of "rk4" are off by 0.006 bits per dimension, and with "quadratic" by 3.
        method, mode, probes, kind: of the divergence, see `fastscore.divergence`. Standard errors need probes >= 2.
        seed: names the probes: those of a sample are the same in every batch. Draws 1, 2 ... are taken.
        noise: where the probes come from, in place of seed.
        eps: the time of the data; by default 1e-5, as published, and 1 / N for N discrete levels.
        convention: how to read the model; by default ``model.convention``, or what was published with the SDE.
        progress: show a progress bar.

    Returns:
        A `Likelihood`. Not differentiable.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it. A model's output that is not like x.
        NonFiniteError: the state is not finite.
    """
    check_choice(_OWNER, "solver", solver, ("rk45", *ODE_METHODS))
    _checks.is_state(_OWNER, "x", x)
    check_choice(_OWNER, "mode", mode, MODES)
    if not isinstance(sde, SDE):
        _checks.wrong_type(_OWNER, "sde", "be a fastscore SDE", type(sde).__name__)
    sde.check_prior(_OWNER)
    if not callable(model):
        _checks.wrong_type(_OWNER, "model", "be callable as model(x, labels)", type(model).__name__)
    if convention is not None and not isinstance(convention, Convention):
        _checks.wrong_type(_OWNER, "convention", "be a fastscore.Convention", type(convention).__name__)
    if (steps is None) != (solver == "rk45"):
        accepted = "be None for solver='rk45'" if solver == "rk45" else f"be given for solver={solver!r}"
        _checks.wrong_value(_OWNER, "steps", accepted, steps)
    if eps is None:
        eps = sde.sampling_eps if isinstance(sde, DiscreteVPSDE) else 1e-5
    check_number(_OWNER, "eps", eps, above=0.0, below=sde.T)
    data = x.to(_checks.accumulation_dtype(x.dtype))
    source = Probes.of(_OWNER, data, as_noise(seed, noise), method, probes, kind, draw=1)
    slope = AugmentedSlope(model, sde, convention or convention_of(model, sde), x.dtype, source, method, mode)
    with evaluating(model):
        if steps is None:
            flow = AdaptiveFlow(slope, rtol=rtol, atol=atol, norm=norm, max_steps=max_steps, eps=eps)
            state, nfe, finished = flow.flow(slope.start(x), progress)
        else:
            check_count(_OWNER, "steps", steps, 1)
            times = time_grid(_OWNER, sde, spacing, steps, eps).flip(0)
            state = checked_result(fixed_step_flow(slope, slope.start(x), times, solver, progress))
            finished = torch.ones(len(x), dtype=torch.bool, device=x.device)
            nfe = torch.full_like(finished, steps * len(ODE_METHODS[solver][1]), dtype=torch.int64)
    return _result(sde, slope, state, nfe, finished)


def _result(sde: SDE, slope: AugmentedSlope, state: Tensor, nfe: Tensor, finished: Tensor) -> Likelihood:
    integrals = torch.where(finished[:, None], state[:, slope.dims :], torch.nan).T
    log_change = integrals.mean(0)
    log_prior = sde.prior_log_prob(state[:, : slope.dims])
    error = standard_error(integrals, slope.method)
    return Likelihood(log_prior + log_change, error, log_prior, log_change, slope.data(state), nfe)

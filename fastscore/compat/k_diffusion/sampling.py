"""The samplers of k-diffusion, by its signatures, on the tables and the loop of `fastscore.samplers`.

Common to all of them::

    sample_...(model, x, sigmas, extra_args=None, callback=None, disable=None, ...) -> Tensor

* ``model(x, sigma, **extra_args)`` returns the clean image; x (B, ...), sigma (B,) in x's dtype.
* x: the first state, of standard deviation sigmas[0] and more; left unchanged.
* sigmas: noise levels of shape (n + 1,), falling strictly, the last 0 or above.
* callback: called once a step, after its first network call, with a dict: ``x``, a copy of the state there, ``i``,
  ``sigma``, ``sigma_hat`` (after churn) and ``denoised``.
* disable: True: no progress bar; None: one on a terminal alone.
* noise_sampler: ``noise_sampler(sigma, sigma_next)`` gives standard normals like x; without it torch's generator is
  asked in the order of k-diffusion, also for noise that has no weight, so that what is drawn later is the same, too.

They raise a ValueError or TypeError for arguments outside what is listed, before any work is done, and a
`NonFiniteError` where the result is not finite. The level that ancestral samplers aim at below the next one is a
difference, of which k-diffusion's float32 keeps few digits where a step spans a factor of 100 and more: there the
numbers part.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.compat.k_diffusion._noise import BrownianNoise, NoiseSampler, SampledNoise, seeded
from fastscore.compat.k_diffusion._run import (
    DENOISER,
    Call,
    Denoiser,
    ExtraArgs,
    Levels,
    Report,
    drawing,
    progress,
    range_of,
    starts,
    step_of_row,
)
from fastscore.samplers.adaptive import Trial
from fastscore.samplers.ancestral import EulerAncestralSampler
from fastscore.samplers.base import FixedStepSampler, check_choice, check_count, check_number
from fastscore.samplers.dpm_adaptive import DPMSolverAdaptive, PIDController
from fastscore.samplers.dpm_solver import DPMSolverSampler
from fastscore.samplers.edm import EDMSampler
from fastscore.samplers.linear_multistep import LMSSampler
from fastscore.samplers.sde_dpm_solver import SDEDPMSolver2SSampler, SDEDPMSolverSampler

__all__ = [
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]

INF = math.inf
MOST_TRIALS = 100_000


def sample_euler(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = INF,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method, with churn (arXiv 2206.00364, algorithm 2, first order)."""
    call = Call("sample_euler", model, x, extra_args, callback, disable)
    return _churned(call, sigmas, (s_churn, s_tmin, s_tmax, s_noise), order=1)


def sample_heun(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = INF,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method, with churn (arXiv 2206.00364, algorithm 2)."""
    call = Call("sample_heun", model, x, extra_args, callback, disable)
    return _churned(call, sigmas, (s_churn, s_tmin, s_tmax, s_noise))


def sample_dpm_2(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = INF,
    s_noise: float = 1.0,
) -> Tensor:
    """The midpoint method with the midpoint in log sigma, with churn (DPM-Solver-2, arXiv 2206.00927)."""
    call = Call("sample_dpm_2", model, x, extra_args, callback, disable)
    return _churned(call, sigmas, (s_churn, s_tmin, s_tmax, s_noise), alpha=0.5, stage_rho=INF)


def sample_lms(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """Linear multistep method of order 1 to 4 in sigma; higher orders are not supported."""
    owner = "sample_lms"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    sampler = LMSSampler(levels.sde, model, order=order, **levels.options)
    return call.follow(sampler.plan(), levels)


def sample_dpmpp_2m(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""
    owner = "sample_dpmpp_2m"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    sampler = DPMSolverSampler(levels.sde, model, lower_order_final=False, **levels.options)
    return call.follow(sampler.plan(), levels)


def sample_euler_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Euler steps to below the next level, and noise up to it; eta >= 0 is the share of fresh noise."""
    owner = "sample_euler_ancestral"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    sampler = EulerAncestralSampler(levels.sde, model, eta=eta, s_noise=s_noise, **levels.options)
    return _ancestral(call, sampler, levels, noise_sampler)


def sample_dpm_2_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """Midpoint steps to below the next level, and noise up to it; eta from 0 to 1."""
    owner = "sample_dpm_2_ancestral"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    check_number(owner, "eta", eta, least=0.0, most=1.0)
    sampler = EulerAncestralSampler(levels.sde, model, order=2, eta=eta, s_noise=s_noise, **levels.options)
    return _ancestral(call, sampler, levels, noise_sampler)


def sample_dpmpp_2s_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver++(2S) steps to below the next level, and noise up to it; eta from 0 to 1."""
    owner = "sample_dpmpp_2s_ancestral"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    sampler = SDEDPMSolver2SSampler(levels.sde, model, stage_noise="none", eta=eta, s_noise=s_noise, **levels.options)
    return _ancestral(call, sampler, levels, noise_sampler)


def sample_dpmpp_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    r: float = 1 / 2,
) -> Tensor:
    """SDE-DPM-Solver++ with a look at a middle point, `r` of the way in log sigma; eta from 0 to 1.

    Without `noise_sampler` the law of the noise is k-diffusion's, the numbers are not: in place of a Brownian tree
    there is counter-based noise, whose seed is drawn from torch's generator as the tree's is. The noise of a middle
    point and of the end of its step are increments of one Brownian motion in sigma. The same holds for the other two
    SDE samplers. With other levels, the tree would give the same path and this gives another.
    """
    owner = "sample_dpmpp_sde"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    sampler = SDEDPMSolver2SSampler(
        levels.sde, model, stage_noise="independent", eta=eta, s_noise=s_noise, r=r, **levels.options
    )
    plan = sampler.plan()
    if noise_sampler is None:
        return call.follow(plan, levels, BrownianNoise(seeded(), plan, levels.ways(plan)))
    plan = drawing(plan, lambda row: row.t_next > 0)
    return call.follow(plan, levels, SampledNoise(owner, x, noise_sampler, levels.ends(plan)))


def sample_dpmpp_2m_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """SDE-DPM-Solver++(2M), ``"midpoint"`` or ``"heun"``; eta >= 0. Noise: see `sample_dpmpp_sde`."""
    owner = "sample_dpmpp_2m_sde"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    check_choice(owner, "solver_type", solver_type, ("midpoint", "heun"))
    options = {"solver_type": solver_type, "eta": eta, "s_noise": s_noise}
    return _multistep_sde(call, levels, noise_sampler, options)


def sample_dpmpp_3m_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(3M); eta >= 0. Noise: see `sample_dpmpp_sde`."""
    owner = "sample_dpmpp_3m_sde"
    call, levels = Call(owner, model, x, extra_args, callback, disable), Levels.of(owner, sigmas)
    options = {"order": 3, "solver_type": "heun", "eta": eta, "s_noise": s_noise}
    return _multistep_sde(call, levels, noise_sampler, options)


def sample_dpm_fast(
    model: Denoiser,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    n: int,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-fast: `n` network calls from sigma_max to sigma_min (arXiv 2206.00927, section 3.4).

    The callback is also told ``t`` and ``t_up``, -log sigma. Only falling levels are supported; eta from 0 to 1.
    """
    owner = "sample_dpm_fast"
    call = Call(owner, model, x, extra_args, callback, disable)
    sde, end = range_of(owner, sigma_min, sigma_max)
    check_count(owner, "n", n, 1)
    check_number(owner, "s_noise", s_noise, least=0.0)
    sampler = DPMSolverSampler(
        sde, model, steps=n, order=3, method="singlestep", algorithm="dpmsolver", eta=eta, eps=end, convention=DENOISER
    )
    plan = drawing(sampler.plan(), lambda row: not row.stage)
    times = torch.tensor([*(plan.steps[k].t for k in starts(plan)), end], dtype=torch.float64)
    sigmas = sde.sigma(times).to(x.device, accumulation_dtype(x.dtype))

    def seen(i: int, state: Tensor, denoised: Tensor) -> None:
        assert callback is not None
        sigma, t = sigmas[i], -sigmas[i].log()
        callback({"x": state, "i": i, "t": t, "t_up": t, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})

    ends = [(sigmas[i], sigmas[i + 1]) for i in step_of_row(plan)]
    noise = SampledNoise(owner, x, noise_sampler, ends, float(s_noise))
    return call.run(plan, sde, noise, None if callback is None else seen, bar_of_calls=True)


def sample_dpm_adaptive(
    model: Denoiser,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    extra_args: ExtraArgs = None,
    callback: Report | None = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    return_info: bool = False,
) -> Tensor | tuple[Tensor, dict[str, int]]:
    """DPM-Solver-12 or -23 with adaptive steps, one step for the whole batch (arXiv 2206.00927, appendix C).

    Only falling levels and eta = 0 are supported, where s_noise and noise_sampler have no effect. The network is not
    called again at a state whose step was rejected, so that ``nfe`` is smaller than k-diffusion's by one for each.
    The error of a first step as short as `h_init` says is mostly rounding with order 3, and sets the length of the
    next: steps, and samples within the tolerance, then differ from k-diffusion's.

    Returns:
        The samples (B, ...); with `return_info` also the counts ``steps``, ``nfe``, ``n_accept``, ``n_reject``. The
        callback is called after every trial, with these counts so far and ``x``, ``i``, ``t`` and ``t_up`` (-log sigma
        of x), ``sigma``, ``sigma_hat``, ``error``, and ``denoised`` at the state where the trial began; not with ``h``.
    """
    owner = "sample_dpm_adaptive"
    call = Call(owner, model, x, extra_args, callback, disable)
    sde, end = range_of(owner, sigma_min, sigma_max)
    if eta != 0:
        raise ValueError(f"{owner}: eta must be 0, got {eta!r}, which is not supported")
    counts, denoised, fresh = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}, x, True

    with progress(owner, None, disable) as bar:

        def network(point: Tensor, sigma: Tensor) -> Tensor:
            nonlocal denoised, fresh
            clean = call.denoise(point, sigma)
            counts["nfe"] += 1
            if fresh:
                denoised, fresh = clean, False
            if bar is not None:
                bar.update()
            return clean

        def after(index: int, trial: Trial, state: Tensor) -> None:
            nonlocal fresh
            fresh = bool(trial.accepted[0])
            counts["steps"] += 1
            counts["n_accept" if fresh else "n_reject"] += 1
            if callback is not None:
                sigma = sde.sigma((trial.t_next if fresh else trial.t)[0]).to(accumulation_dtype(x.dtype))
                t, error = -sigma.log(), trial.error[0]
                callback(
                    {"sigma": sigma, "sigma_hat": sigma, "x": state, "i": index, "t": t, "t_up": t}
                    | {"denoised": denoised, "error": error, **counts}
                )

        sampler = DPMSolverAdaptive(
            sde,
            network,
            order=order,
            rtol=rtol,
            atol=atol,
            h_init=abs(h_init),
            controller=PIDController(pcoeff, icoeff, dcoeff, accept_safety),
            norm="batch",
            max_steps=MOST_TRIALS,
            eps=end,
            convention=DENOISER,
        )
        result = sampler.sample(x, callback=after)
        assert isinstance(result, Tensor)
    if noise_sampler is None:
        for _ in range(counts["n_accept"]):
            torch.randn_like(x)  # without weight, but what is drawn later depends on it
    return (result, counts) if return_info else result


def _churned(call: Call, sigmas: Tensor, churn: tuple[float, float, float, float], **method: float) -> Tensor:
    """The samplers with churn, which draw at every step, before its first network call."""
    owner, levels = call.owner, Levels.of(call.owner, sigmas)
    s_churn, s_tmin, s_tmax, s_noise = churn
    if not 0 <= s_tmin <= s_tmax:
        raise ValueError(f"{owner}: s_tmin and s_tmax must satisfy 0 <= s_tmin <= s_tmax, got {s_tmin!r}, {s_tmax!r}")
    low, high = torch.tensor([s_tmin, s_tmax], dtype=sigmas.dtype).tolist()  # they are compared in the levels' dtype
    sampler = EDMSampler(
        levels.sde,
        call.model,
        s_churn=s_churn,
        s_min=low * (1 - 1e-12),  # the levels come back from times, rounded
        s_max=high * (1 + 1e-12),
        s_noise=s_noise,
        **method,  # type: ignore[arg-type]
        **levels.options,
    )
    rows = sampler.plan().steps
    plan = drawing(sampler.plan(), lambda row: not row.stage and row is not rows[-1])
    if rows[0].label is not None:
        torch.randn_like(call.x)  # of the first step, which has no churn
    return call.follow(plan, levels, SampledNoise(owner, call.x, None))


def _ancestral(call: Call, sampler: FixedStepSampler, levels: Levels, noise_sampler: NoiseSampler | None) -> Tensor:
    """The samplers that draw at the end of every step that does not lead to 0."""
    plan = drawing(sampler.plan(), lambda row: not row.stage and row.t_next > 0)
    return call.follow(plan, levels, SampledNoise(call.owner, call.x, noise_sampler, levels.ends(plan)))


def _multistep_sde(call: Call, levels: Levels, noise_sampler: NoiseSampler | None, options: dict[str, Any]) -> Tensor:
    sampler = SDEDPMSolverSampler(levels.sde, call.model, lower_order_final=False, **levels.options, **options)
    plan = sampler.plan()
    if noise_sampler is None:
        return call.follow(plan, levels, seeded())
    plan = drawing(plan, lambda row: row.t_next > 0 and sampler.eta != 0)
    return call.follow(plan, levels, SampledNoise(call.owner, call.x, noise_sampler, levels.ends(plan)))

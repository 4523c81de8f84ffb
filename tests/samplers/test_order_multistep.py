"""Convergence orders of linear multistep, UniPC and SDE-DPM-Solver methods, in float64 and without sampling error."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch

from fastscore import (
    VESDE,
    VPSDE,
    Convention,
    LMSSampler,
    SDEDPMSolver2SSampler,
    SDEDPMSolverSampler,
    SubVPSDE,
    UniPCSampler,
)
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation, vp_perturbation

DATA = mixture_2d()
SETTINGS = {  # and where to stop: where the smallest of the errors below are still far from rounding
    "vp": (VPSDE(), AnalyticModel(DATA, vp_perturbation(), "noise"), 0.15),
    "ve": (VESDE(0.01, 10.0), AnalyticModel(DATA, ve_perturbation, "score"), 0.8),
}
Z = torch.randn(8, *DATA.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@cache
def exact(setting):
    """The probability flow, dy/dlambda = -exp(-lambda) eps in y = x / alpha, by the classical Runge-Kutta method.

    Its own error is below 1e-10.
    """
    sde, model, eps = SETTINGS[setting]
    n = 1000
    first, last = (float(sde.log_snr(t)) / 2 for t in (1.0, eps))
    times = sde.inverse_log_snr(torch.linspace(2 * first, 2 * last, 2 * n + 1, dtype=torch.float64))
    alphas, sigmas = sde.marginal(times)
    h = (last - first) / n

    def slope(y, k):
        label = (999 * times[k] if setting == "vp" else sigmas[k]).expand(len(y))
        output = model(alphas[k] * y, label)
        return -sigmas[k] / alphas[k] * (output if setting == "vp" else -sigmas[k] * output)

    y = Z * sde.prior_std / alphas[0]
    for k in range(0, 2 * n, 2):
        k1 = slope(y, k)
        k2 = slope(y + h / 2 * k1, k + 1)
        k3 = slope(y + h / 2 * k2, k + 1)
        k4 = slope(y + h * k3, k + 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return alphas[-1] * y


def graded(setting, n):
    """Times of n steps even in log-SNR, the first of which starts with tiny steps that double.

    The first steps of a multistep method have lower order; tiny enough they do not show.
    """
    sde, _, eps = SETTINGS[setting]
    first, last = (float(sde.log_snr(t)) for t in (1.0, eps))
    h, doublings = (last - first) / n, 2 * round(math.log2(n)) - 4
    start = [first, *(first + h / 2**k for k in range(doublings, 0, -1))]
    log_snr = torch.tensor([*start, *(first + h * i for i in range(1, n + 1))], dtype=torch.float64)
    return sde.inverse_log_snr(log_snr)


def measured_slope(setting, cls, options, sizes):
    sde, model, _ = SETTINGS[setting]
    errors = []
    for n in sizes:
        times = graded(setting, n)
        steps = len(times) - 1
        extra = {} if options.get("corrector", True) else {"disable_corrector": range(steps)}
        given = {name: value for name, value in options.items() if name != "corrector"}
        sampler = cls(sde, model, steps=steps, spacing=times, denoise=False, **given, **extra)
        errors.append(float((sampler.sample(Z * sde.prior_std) - exact(setting)).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(setting, cls.__name__, options, [f"{e:.1e}" for e in errors], [f"{s:.2f}" for s in slopes])
    return slopes[-1]


FLAT = {"lower_order_final": False}
ORDERS = {
    **{f"lms {p}": (LMSSampler, {"order": p}, p) for p in (1, 2, 3, 4)},
    **{
        f"uni{name} {p} {variant} {'image' if x0 else 'noise'}": (
            UniPCSampler,
            {"order": p, "variant": variant, "predict_x0": x0, "corrector": name == "pc", **FLAT},
            p + (name == "pc"),  # the corrector lifts the order by one (theorem 3.1 and its corollary)
        )
        for name, p, variant, x0 in itertools.product(("p", "pc"), (1, 2, 3), ("bh1", "bh2"), (True, False))
        if variant == "bh2" or (name, p) in (("p", 2), ("pc", 1))  # the others do not depend on the variant
    },
    **{
        f"sde-{algorithm} without noise {p} {solver_type}": (
            SDEDPMSolverSampler,
            {"order": p, "algorithm": algorithm, "solver_type": solver_type, "eta": 0.0, **FLAT},
            # published third-order steps have half the last term that they should have
            2 if p == 3 and solver_type != "taylor" else p,
        )
        for p, algorithm, solver_type in itertools.product((2, 3), ("dpmsolver++", "dpmsolver"), ("heun", "taylor"))
    },
    "2S without noise": (SDEDPMSolver2SSampler, {"eta": 0.0}, 2),
    "2S without noise, r = 0.3": (SDEDPMSolver2SSampler, {"eta": 0.0, "r": 0.3}, 2),
}


@pytest.mark.no_poison
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", ORDERS)
def test_convergence_order(method, setting):
    cls, options, order = ORDERS[method]
    sizes = (256, 512) if order == 4 or options.get("order", 2) > order else (128, 256)
    assert measured_slope(setting, cls, options, sizes) == pytest.approx(order, abs=0.2)


# ------------------------------------------------------------------------------------------------ weak order

VARIANCE = 0.3
GAUSSIANS = {"vp": (VPSDE(), 0.1), "subvp": (SubVPSDE(), 0.1), "ve": (VESDE(0.01, 10.0), 0.4)}


def variance_at_the_end(sampler):
    """Of the sampler on 1-D data N(0, VARIANCE), exactly: there every row is linear in what came before.

    Follows the covariance of state, point and the last four predictions through the plan.
    """
    steps = sampler.plan().steps
    times = torch.tensor([1.0, *(step.t for step in steps)], dtype=torch.float64)
    alphas, sigmas = (values.numpy() for values in sampler.sde.marginal(times))
    totals = alphas**2 * VARIANCE + sigmas**2
    looks = (alphas * VARIANCE if sampler.convention.prediction == "denoised" else sigmas) / totals
    covariance = np.zeros((6, 6))
    covariance[:2, :2] = totals[0]
    for step, look in zip(steps, looks[1:], strict=True):
        assert step.keep is None
        seen = np.eye(6)[[0, 1, 1, 2, 3, 4]]
        seen[2, 1] = look
        a, *b, s = step.coefficients
        moved, noise = np.zeros(6), np.zeros(6)
        moved[0] = a
        for age, weight in zip(step.ages, b, strict=True):
            moved[1 if age < 0 else 2 + age] += weight
        move = np.eye(6)
        for place in (1,) if step.stage else (0, 1):
            move[place], noise[place] = moved, s
        move = move @ seen
        covariance = move @ covariance @ move.T + np.outer(noise, noise)
    return float(covariance[0, 0])


WEAK_ORDERS = {
    "++ 1": (SDEDPMSolverSampler, {"order": 1}, 1),
    "++ 2": (SDEDPMSolverSampler, {"order": 2}, 2),
    "++ 3": (SDEDPMSolverSampler, {"order": 3, "solver_type": "taylor"}, 2),  # the path is rough: no more than 2
    "noise 1": (SDEDPMSolverSampler, {"order": 1, "algorithm": "dpmsolver"}, 1),
    "noise 2": (SDEDPMSolverSampler, {"order": 2, "algorithm": "dpmsolver"}, 2),
    "2S path": (SDEDPMSolver2SSampler, {}, 2),
    "2S path, r = 0.3": (SDEDPMSolver2SSampler, {"r": 0.3}, 2),
    "2S independent": (SDEDPMSolver2SSampler, {"stage_noise": "independent"}, 1),
    "2S none": (SDEDPMSolver2SSampler, {"stage_noise": "none"}, 2),
}


@pytest.mark.parametrize(("setting", "eta"), [("vp", 1.0), ("vp", 0.5), ("subvp", 1.0), ("ve", 1.0)])
@pytest.mark.parametrize("method", WEAK_ORDERS)
def test_weak_order_on_gaussian_data(method, setting, eta):
    (cls, options, order), (sde, eps) = WEAK_ORDERS[method], GAUSSIANS[setting]
    alpha, sigma = (float(c) for c in sde.marginal(eps))
    exact = alpha**2 * VARIANCE + sigma**2
    prediction = "noise" if options.get("algorithm") == "dpmsolver" else "denoised"
    flat = FLAT if cls is SDEDPMSolverSampler else {}
    errors = []
    for n in (1024, 2048) if order < options.get("order", order) or "r" in options else (256, 512):
        sampler = cls(
            sde,
            lambda x, t: x,
            steps=n,
            eps=eps,
            spacing="log_snr",
            denoise=False,
            convention=Convention(prediction, "time"),
            eta=eta,
            **options,
            **flat,
        )
        errors.append(abs(variance_at_the_end(sampler) - exact))
    slope = math.log2(errors[0] / errors[1])
    print(method, setting, eta, [f"{e:.1e}" for e in errors], f"{slope:.2f}")
    assert slope == pytest.approx(order, abs=0.2)


@pytest.mark.no_poison
@pytest.mark.parametrize("options", [{"stage_noise": "path"}, {"stage_noise": "independent"}], ids=str)
def test_the_loop_has_the_computed_variance(options):
    """Ties the computation above to what is sampled."""

    def network(x, t):
        alpha, sigma = (float(c) for c in VPSDE().marginal(float(t[0])))
        return alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * x

    shared = {"steps": 2, "eps": 0.3, "spacing": "log_snr", "denoise": False}
    sampler = SDEDPMSolver2SSampler(VPSDE(), network, convention=Convention("denoised", "time"), **shared, **options)
    alpha, sigma = (float(c) for c in VPSDE().marginal(1.0))
    start = math.sqrt(alpha**2 * VARIANCE + sigma**2)
    latent = start * torch.randn(200_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = (float(sampler.sample(latent, seed=1).var()) / variance_at_the_end(sampler) - 1) / math.sqrt(2 / len(latent))
    assert abs(z) < 4, f"z = {z:.2f}"

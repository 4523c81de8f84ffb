"""DDIM and ancestral sampling on data whose score is known: the right law, and first order."""

import itertools
import math

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, DDIMInverseSampler, DDIMSampler, DDPMSampler, DiscreteVPSDE, SubVPSDE
from fastscore.noise import PhiloxNoise
from fastscore.testing.statistics import (
    AnalyticModel,
    assert_same_law,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
STOCHASTIC = {
    "eta 0.5": (DDIMSampler, {"eta": 0.5}),
    "eta 1": (DDIMSampler, {"eta": 1.0}),
    "sigma_hat": (DDIMSampler, {"eta": "sigma_hat"}),
    "fixed_small": (DDPMSampler, {"variance": "fixed_small"}),
    "fixed_large": (DDPMSampler, {"variance": "fixed_large"}),
}


def exact(sde_name, data):
    if sde_name == "ve":
        return AnalyticModel(data, ve_perturbation, "score")
    if sde_name == "discrete":
        perturb = SDES["discrete"].marginal
        return AnalyticModel(data, lambda label: perturb((label + 1) / 1000), "noise")
    return AnalyticModel(data, vp_perturbation(subvp=sde_name == "subvp"), "noise")


@pytest.mark.parametrize("inverse", [False, True], ids=["sampling", "encoding"])
@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
def test_is_of_order_one(sde_name, inverse):
    """Error against a fine solution of the probability-flow ODE, on the mixture, in float64."""
    sde, data = SDES[sde_name], mixture_2d()
    model = exact(sde_name, data)
    sampler = DDIMInverseSampler if inverse else DDIMSampler
    options = {"spacing": "log_snr", "eps": 0.05} | ({} if inverse else {"denoise": False})
    x = data.sample(8) if inverse else sde.prior_sample((8, *data.shape), noise=PhiloxNoise(5), dtype=torch.float64)
    fine = fine_solution(sde, model, x, inverse)
    errors = [float((sampler(sde, model, steps=n, **options).sample(x) - fine).norm()) for n in (25, 50, 100, 200)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(sde_name, [f"{e:.2e}" for e in errors], [f"{s:.3f}" for s in slopes])
    assert abs(slopes[-1] - 1) < 0.2


def fine_solution(sde, model, x, inverse):
    """The classical Runge-Kutta method for dy/ds = eps in y = x / alpha, s = sigma / alpha, in log s."""
    start, end = (0.05, 1.0) if inverse else (1.0, 0.05)
    first, last = (float(-0.5 * sde.log_snr(t)) for t in (start, end))
    n = 150
    h = (last - first) / n
    prediction = "score" if isinstance(sde, VESDE) else "noise"

    def slope(y, log_s):
        t = sde.inverse_log_snr(-2 * log_s)
        alpha, sigma = (float(c) for c in sde.marginal(t))
        label = sigma if prediction == "score" else 999 * float(t)
        h = model(alpha * y, torch.full((len(y),), label, dtype=torch.float64))
        return math.exp(log_s) * (h if prediction == "noise" else -sigma * h)

    y = x / float(sde.alpha(start))
    for i in range(n):
        s = first + i * h
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h / 2)
        k3 = slope(y + h / 2 * k2, s + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, s + h))
    return y * float(sde.alpha(end))


def test_encoding_leads_back():
    """The error of there and back falls with the steps, and the latents are those of the data."""
    sde, data = SDES["discrete"], mixture_2d()
    model = exact("discrete", data)
    images = data.sample(50)
    errors = []
    for steps in (10, 20, 50, 100):
        latents = DDIMInverseSampler(sde, model, steps=steps).sample(images)
        back = DDIMSampler(sde, model, steps=steps, denoise=False).sample(latents)
        errors.append(float((back - images).norm() / images.norm()))
    print(errors)
    assert all(late < early for early, late in itertools.pairwise(errors))
    assert errors[-1] < 0.1


def law_of_plan(sampler, variance, start):
    """Variance of the output on 1-D Gaussian data, exactly: the score is linear, so every row is, too."""
    value = start
    for step in sampler.plan().steps:
        a, b, s = step.coefficients
        alpha, sigma = (float(c) for c in sampler.sde.marginal(step.t))
        value = (a - b / (alpha**2 * variance + sigma**2)) ** 2 * value + s**2
    return value


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
def test_weak_order_one(sde_name, name):
    """Against the exact variance at eps, without sampling error: that of every step follows from the table."""
    sde, variance, eps = SDES[sde_name], 0.3, 0.4
    alpha, sigma = (float(c) for c in sde.marginal(eps))
    alpha_1, sigma_1 = (float(c) for c in sde.marginal(1.0))
    exact_variance, start = alpha**2 * variance + sigma**2, alpha_1**2 * variance + sigma_1**2
    sampler, options = STOCHASTIC[name]
    errors = []
    for n in (100, 200, 400, 800):
        made = sampler(
            sde,
            lambda x, t: x,
            steps=n,
            eps=eps,
            spacing="linear",
            denoise=False,
            convention=Convention("score", "time"),
            **options,
        )
        errors.append(abs(law_of_plan(made, variance, start) - exact_variance))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(sde_name, name, [f"{e:.2e}" for e in errors], [f"{s:.3f}" for s in slopes])
    assert abs(slopes[-1] - 1) < 0.1


@pytest.mark.no_poison  # many small steps
@pytest.mark.parametrize("name", ["ode", "eta 0.5", "fixed_small", "fixed_large"])  # eta 1 and sigma_hat are the latter
@pytest.mark.parametrize("sde_name", SDES)
def test_reaches_the_law(sde_name, name):
    data = mixture_2d()
    sampler, options = {"ode": (DDIMSampler, {}), **STOCHASTIC}[name]
    spacing = None if sde_name == "discrete" else "log_snr"
    made = sampler(SDES[sde_name], exact(sde_name, data), steps=300, spacing=spacing, **options)
    assert_same_law(made.sample((2000, *data.shape), seed=1), data, f"{sde_name} {name}")

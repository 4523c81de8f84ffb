"""Samplers on data whose score is known: the right law, and Euler-Maruyama's weak order."""

import itertools
import math

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, EulerMaruyamaSampler, PCSampler, SubVPSDE
from fastscore.samplers import CORRECTORS, PREDICTORS
from fastscore.testing.statistics import (
    AnalyticModel,
    Gaussian,
    assert_same_law,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE()}
COMBINATIONS = [
    pytest.param(sde, predictor, corrector, id=f"{sde}-{predictor}-{corrector}")
    for sde, predictor, corrector in itertools.product(SDES, PREDICTORS, CORRECTORS)
    if (predictor, corrector) != ("none", "none")
]


def exact_network(sde_name, data):
    if sde_name == "ve":
        return AnalyticModel(data, ve_perturbation, "score")
    return AnalyticModel(data, vp_perturbation(subvp=sde_name == "subvp"), "noise")


@pytest.mark.no_poison
@pytest.mark.parametrize(("sde_name", "predictor", "corrector"), COMBINATIONS)
@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_every_combination_reaches_the_law(sde_name, predictor, corrector, data):
    # a corrector alone has to follow the annealing: larger steps and more of them
    alone = predictor == "none"
    sampler = PCSampler(
        SDES[sde_name],
        exact_network(sde_name, data),
        predictor,
        corrector,
        snr=0.3 if alone else 0.05,
        steps=1000,
        corrector_steps=5 if alone else 1,
    )
    x = sampler.sample((2000, *data.shape), seed=1)
    assert_same_law(x, data, f"{sde_name} {predictor} {corrector}")


@pytest.mark.no_poison
@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize("probability_flow", [False, True])
@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_euler_maruyama_reaches_the_law(sde_name, probability_flow, data):
    model = exact_network(sde_name, data)
    sampler = EulerMaruyamaSampler(SDES[sde_name], model, steps=1000, probability_flow=probability_flow)
    assert_same_law(sampler.sample((2000, *data.shape), seed=2), data, f"{sde_name} Euler-Maruyama")


def law_of_plan(sampler, variance, start):
    """Variance of the sampler's output on 1-D Gaussian data, exactly: the score is linear, so every row is, too."""
    value = start
    for step in sampler.plan().steps:
        a, b, s = step.coefficients
        alpha, sigma = (float(c) for c in sampler.sde.marginal(step.t))
        value = (a - b / (alpha**2 * variance + sigma**2)) ** 2 * value + s**2
    return value


@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize("probability_flow", [False, True], ids=["sde", "ode"])
def test_euler_maruyama_has_weak_order_one(sde_name, probability_flow):
    """Against the exact law at eps, without sampling error: the variance of every step follows from the table."""
    sde, variance, eps = SDES[sde_name], 0.3, 0.4
    alpha, sigma = (float(c) for c in sde.marginal(eps))
    alpha_1, sigma_1 = (float(c) for c in sde.marginal(1.0))
    exact, start = alpha**2 * variance + sigma**2, alpha_1**2 * variance + sigma_1**2
    sizes = [200 * 2**k for k in range(5)]
    errors = []
    for n in sizes:
        sampler = EulerMaruyamaSampler(
            sde,
            lambda x, t: x,
            steps=n,
            eps=eps,
            denoise=False,
            probability_flow=probability_flow,
            convention=Convention("score", "time"),
        )
        errors.append(abs(law_of_plan(sampler, variance, start) - exact))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(sde_name, probability_flow, [f"{e:.2e}" for e in errors], [f"{s:.3f}" for s in slopes])
    assert abs(slopes[-1] - 1) < 0.1


@pytest.mark.no_poison
def test_the_table_moves_the_law_as_computed():
    """Ties the exact computation above to what the loop does: the sampled variance is the table's."""
    data = Gaussian(torch.zeros(1, dtype=torch.float64), torch.tensor([[0.3]], dtype=torch.float64))
    sde = SDES["vp"]
    sampler = EulerMaruyamaSampler(sde, exact_network("vp", data), steps=20, eps=0.05, denoise=False)
    x = sampler.sample((200_000, 1), seed=3, dtype=torch.float64)
    score_model = EulerMaruyamaSampler(
        sde, lambda x, t: x, steps=20, eps=0.05, denoise=False, convention=Convention("score", "time")
    )
    expected = law_of_plan(score_model, 0.3, 1.0)
    z = (float(x.var()) / expected - 1) / math.sqrt(2 / len(x))
    assert abs(z) < 4, f"z = {z:.2f}"

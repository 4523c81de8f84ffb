"""Runge-Kutta methods for the probability-flow ODE: parity with the reference and torchdiffeq, options, errors."""

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, ODESampler, SubVPSDE
from fastscore.reference.samplers import ode_sampler, spaced_times
from fastscore.samplers import ODE_METHODS, Hook
from fastscore.testing.networks import Smooth
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation, vp_perturbation

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
SHAPE = (2, 3, 4, 4)
CALLS = {"euler": 1, "heun": 2, "rk4": 4}


class Watching(Hook):
    """Sees every clean image and changes nothing."""

    def on_denoised(self, denoised, x, moment):
        return None


def assert_equal(x, expected):
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_the_methods_are_those_of_the_reference():
    assert set(ODE_METHODS) == set(CALLS)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
def test_equals_the_literal_reference(method, sde_name, prediction):
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    latent = sde.prior_sample(SHAPE, dtype=torch.float64)
    sampler = ODESampler(sde, Smooth(), steps=12, method=method, spacing="log_snr", eps=0.01, convention=convention)
    expected = ode_sampler(sde, Smooth(), latent, convention, spaced_times(sde, "log_snr", 13, 0.01), method)
    x, info = sampler.sample(latent, return_info=True)
    assert info.nfe == CALLS[method] * 12
    assert_equal(x, expected)
    assert_equal(sampler.sample(latent, hooks=[Watching()]), expected)
    with fastscore.backend("reference"):
        assert_equal(sampler.sample(latent), expected)


@pytest.mark.parametrize("spacing", ["linear", "quadratic", "log_snr", "karras"])
@pytest.mark.parametrize("sde_name", SDES)
def test_every_spacing_equals_the_literal_reference(spacing, sde_name):
    sde = SDES[sde_name]
    latent = sde.prior_sample(SHAPE, dtype=torch.float64)
    sampler = ODESampler(sde, Smooth(), steps=10, spacing=spacing, rho=5.0, eps=0.02)
    times = spaced_times(sde, spacing, 11, 0.02, 5.0)
    assert_equal(sampler.sample(latent), ode_sampler(sde, Smooth(), latent, sampler.convention, times, "heun"))


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("sde_name", SDES)
def test_clipping_is_that_of_a_clipped_network(method, sde_name):
    sde, convention, bound = SDES[sde_name], Convention("denoised", "log_sigma"), 0.3
    latent = sde.prior_sample(SHAPE, dtype=torch.float64)
    sampler = ODESampler(sde, Smooth(), steps=6, method=method, eps=0.05, clip=bound, convention=convention)
    times = spaced_times(sde, "linear", 7, 0.05)
    expected = ode_sampler(
        sde, lambda x, t: Smooth()(x, t).clamp(-bound, bound), latent, convention, times, method
    )  # fmt: skip
    assert_equal(sampler.sample(latent), expected)
    free = ODESampler(sde, Smooth(), steps=6, method=method, eps=0.05, convention=convention).sample(latent)
    assert not torch.allclose(free, expected, rtol=1e-3)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_path_may_end_without_noise_and_has_few_steps(method, steps):
    times = torch.linspace(0.9, 0.0, steps + 1, dtype=torch.float64)
    latent = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = ODESampler(VPSDE(), Smooth(), steps=steps, method=method, spacing=times)
    x, info = sampler.sample(latent, return_info=True)
    assert info.nfe == CALLS[method] * (steps - 1) + 1
    assert_equal(x, ode_sampler(VPSDE(), Smooth(), latent, sampler.convention, times, method))


def test_a_later_start_draws_its_own_prior():
    sde = VESDE(0.01, 10.0)
    times = torch.linspace(0.5, 1e-3, 11, dtype=torch.float64)
    sampler = ODESampler(sde, Smooth(), steps=10, spacing=times)
    latent = sde.prior_sample(SHAPE, noise=fastscore.PhiloxNoise(4)) * float(sde.sigma(0.5)) / 10.0
    torch.testing.assert_close(sampler.sample(SHAPE, seed=4), sampler.sample(latent))


def flow(sde, model):
    """The ODE as torchdiffeq takes it."""
    convention = ODESampler(sde, model, steps=1).convention

    def slope(t, x):
        label = convention.labels(sde, t).expand(len(x))
        p, q = convention.coefficients(sde, t)
        score = p * x + q * model(x, label)
        return sde.drift_coefficient(t) * x - 0.5 * sde.diffusion(t) ** 2 * score

    return slope


def exact_network(sde):
    if isinstance(sde, VESDE):
        return AnalyticModel(mixture_2d(), ve_perturbation, "score")
    return AnalyticModel(mixture_2d(), vp_perturbation(subvp=isinstance(sde, SubVPSDE)), "noise")


@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
@pytest.mark.parametrize(("ours", "theirs"), [("euler", "euler"), ("heun", "heun2")])
def test_equals_torchdiffeq(sde_name, ours, theirs):
    from torchdiffeq import odeint

    sde = SDES[sde_name]
    latent = sde.prior_sample((8, 2, 1, 1), dtype=torch.float64)
    times = spaced_times(sde, "linear", 41, 0.01)
    expected = odeint(flow(sde, exact_network(sde)), latent, times, method=theirs)[-1]
    x = ODESampler(sde, exact_network(sde), steps=40, method=ours, eps=0.01).sample(latent)
    assert_equal(x, expected)


@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
def test_comes_to_the_same_end_as_another_method_of_order_four(sde_name):
    """torchdiffeq's rk4 is the 3/8 rule: the difference to the classical method falls with the fourth power."""
    from torchdiffeq import odeint

    torch.manual_seed(0)  # there are states at which the leading terms of the two cancel
    sde = SDES[sde_name]
    latent = sde.prior_sample((8, 2, 1, 1), dtype=torch.float64)
    differences = []
    for n in (100, 200):
        expected = odeint(flow(sde, exact_network(sde)), latent, spaced_times(sde, "linear", n + 1, 0.1), method="rk4")
        x = ODESampler(sde, exact_network(sde), steps=n, method="rk4", eps=0.1).sample(latent)
        differences.append(float((x - expected[-1]).abs().max()))
    assert differences[1] < 1e-5
    assert 12 < differences[0] / differences[1] < 20


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "rk5"}, ValueError, r"ODESampler: method must be one of euler, heun, rk4, got 'rk5'"),
        ({"steps": 0}, ValueError, r"ODESampler: steps must be at least 1, got 0"),
        ({"spacing": "cubic"}, ValueError, r"spacing must be one of linear, quadratic, log_snr, karras, or a tensor"),
        ({"spacing": torch.linspace(1, 0.1, 4)}, ValueError, r"shape \(steps \+ 1,\) = \(6,\), got shape \(4,\)"),
        ({"spacing": torch.linspace(0.1, 1, 6)}, ValueError, r"must fall strictly"),
        ({"spacing": torch.linspace(1, -0.1, 6)}, ValueError, r"times must lie in \[0, 1\], got \[1.0, .*-0.1"),
        ({"spacing": "karras", "rho": 0.5}, ValueError, r"rho must be a finite number of at least 1, got 0.5"),
        ({"eps": 1.0}, ValueError, r"eps must be a finite number above 0 and below 1, got 1.0"),
    ],
)
def test_bad_construction(options, error, message):
    with pytest.raises(error, match=message):
        ODESampler(VPSDE(), Smooth(), **({"steps": 5} | options))

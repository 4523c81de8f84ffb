"""Linear measurements: normal data of independent pixels, where the guided score is that of the posterior."""

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, PhiloxNoise
from fastscore.control import LinearGuidance, LinearOperator, averaging
from fastscore.samplers import Hook
from fastscore.testing.statistics import AnalyticModel, Gaussian, assert_same_law, ve_perturbation, vp_perturbation

SHAPE, STD, NOISE_STD = (1, 4, 4), 0.6, 0.1
MEAN = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(SHAPE)
DATA = Gaussian(MEAN, STD**2 * torch.eye(16, dtype=torch.float64))
MATRIX = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # A A^T: 6 eigenvalues
SENSING = LinearOperator(
    lambda x: x.flatten(1) @ MATRIX.T.to(x.dtype), lambda y: (y @ MATRIX.to(y.dtype)).reshape(-1, *SHAPE), SHAPE
)
OPERATORS = {"averaging": averaging(2, SHAPE), "sensing": SENSING}
SDES = {"vp": (VPSDE(), vp_perturbation(), "scaled_time"), "ve": (VESDE(0.01, 20.0), ve_perturbation, "sigma")}


def matrix_of(operator):
    """Column k is the measurement of pixel k."""
    return operator.forward(torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE)).flatten(1).T


def measurements(operator, n, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *operator.measured, dtype=torch.float64, generator=generator)


def posterior(operator, y):
    """x_0 given A x_0 + noise = y."""
    a = matrix_of(operator)
    precision = torch.eye(16, dtype=torch.float64) / STD**2 + a.T @ a / NOISE_STD**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (MEAN.flatten() / STD**2 + a.T @ y.flatten() / NOISE_STD**2)
    return Gaussian(mean.reshape(SHAPE), (covariance + covariance.T) / 2)


def network(sde, prediction="noise"):
    _, perturb, label = SDES[sde]
    model = AnalyticModel(DATA, perturb, prediction)
    model.convention = Convention(prediction, label)
    return model


def guidance(model, operator, y, **options):
    return LinearGuidance(model, operator, y, noise_std=NOISE_STD, data_std=STD, **options)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@pytest.mark.parametrize(("sde", "prediction"), [("vp", "noise"), ("vp", "denoised"), ("ve", "score"), ("ve", "v")])
def test_the_guided_score_is_that_of_the_posterior(operator, sde, prediction):
    y = measurements(operator, 3)
    exact = [posterior(operator, row) for row in y]
    checked = []

    class Check(Hook):
        def on_denoised(self, denoised, x, moment):
            alpha, sigma = moment.sde.marginal(moment.t)
            rows = [law.denoised(x[i : i + 1], alpha[i], sigma[i])[0] for i, law in enumerate(exact)]
            torch.testing.assert_close(denoised, torch.stack(rows), rtol=1e-6, atol=1e-6)
            checked.append(moment.index)

    model = network(sde, prediction)
    sampler = fastscore.sampler("ddim", SDES[sde][0], model, steps=6)
    sampler.sample((3, *SHAPE), dtype=torch.float64, hooks=[guidance(model, operator, y), Check()])
    assert checked == list(range(6))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=list(OPERATORS))
@pytest.mark.parametrize("name", ["dpmpp-2m", "edm"])
def test_samples_have_the_law_of_the_posterior(operator, name):
    """Mean and covariance in closed form."""
    y = measurements(operator, 1)
    model = network("vp")
    sampler = fastscore.sampler(name, VPSDE(), model, steps=60, eps=1e-4)
    x = sampler.sample((2000, *SHAPE), dtype=torch.float64, hooks=[guidance(model, operator, y)])
    assert_same_law(x, posterior(operator, y[0]), name)


@pytest.mark.parametrize("name", ["rk45", "adaptive-sde", "dpm-adaptive-23"])
def test_every_sample_keeps_its_measurement(name):
    """Where samples leave the batch one after the other."""
    operator, model = OPERATORS["averaging"], network("vp")
    y = measurements(operator, 3)
    sampler = fastscore.sampler(name, VPSDE(), model, rtol=1e-2, atol=1e-2)
    x = sampler.sample((3, *SHAPE), dtype=torch.float64, hooks=[guidance(model, operator, y)])
    assert float((operator.forward(x) - y).std()) < 2 * NOISE_STD
    for i in range(3):
        alone = sampler.sample(
            (1, *SHAPE),
            dtype=torch.float64,
            noise=PhiloxNoise(0, samples=[i]),
            hooks=[guidance(model, operator, y[i : i + 1])],
        )
        torch.testing.assert_close(alone[0], x[i], rtol=1e-6, atol=1e-6)


def test_without_noise_the_measurement_is_met():
    operator, model = OPERATORS["averaging"], network("vp")
    y = measurements(operator, 2).float()
    hook = LinearGuidance(model, operator, y, noise_std=0.0, data_std=STD, iterations=1)
    x = fastscore.sampler("ddim", VPSDE(), model, steps=40, eps=1e-4).sample((2, *SHAPE), hooks=[hook])
    assert x.dtype == torch.float32
    torch.testing.assert_close(operator.forward(x), y, rtol=0, atol=2e-3)


def test_averaging():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert averaging(2, SHAPE).forward(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert averaging(2, SHAPE).measured == (1, 2, 2)


Y = measurements(OPERATORS["averaging"], 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearOperator(None, abs, SHAPE), TypeError, "forward must be callable, got NoneType"),
        (lambda: LinearOperator(abs, 3, SHAPE), TypeError, "adjoint must be callable, got int"),
        (
            lambda: LinearOperator(lambda x: 2 * x, lambda y: y, SHAPE),
            ValueError,
            "adjoint must be that of forward, with",
        ),
        (
            lambda: LinearOperator(lambda x: x + 1, lambda y: y, SHAPE),
            ValueError,
            "adjoint must be that of forward, with",
        ),
        (lambda: LinearOperator(abs, lambda y: y, SHAPE), ValueError, "adjoint must be that of forward, with"),
        (
            lambda: LinearOperator(lambda x: x[:1], abs, SHAPE),
            ValueError,
            "forward must return a tensor with a row per",
        ),
        (
            lambda: LinearOperator(lambda x: x, lambda y: y[0], SHAPE),
            ValueError,
            r"adjoint must return images, \(2, 1, 4",
        ),
        (
            lambda: averaging(3, SHAPE),
            ValueError,
            r"shape must be \(C, H, W\) with H and W divisible by 3, got \(1, 4, 4",
        ),
        (lambda: averaging(0, SHAPE), ValueError, "factor must be at least 1"),
        (lambda: guidance(None, SENSING, Y), TypeError, "network must be callable as network.x, times., got NoneType"),
        (lambda: guidance(network("vp"), abs, Y), TypeError, "operator must be a LinearOperator, got builtin"),
        (
            lambda: guidance(network("vp"), SENSING, Y),
            ValueError,
            r"measurement must have .* \(6,\), got \(2, 1, 2, 2\)",
        ),
        (lambda: guidance(network("vp"), OPERATORS["averaging"], Y.int()), TypeError, "measurement must be float32"),
        (
            lambda: guidance(network("vp"), OPERATORS["averaging"], Y, iterations=0),
            ValueError,
            "iterations must be at least",
        ),
        (
            lambda: LinearGuidance(abs, SENSING, Y[0], noise_std=0, data_std=0),
            ValueError,
            "measurement must have shape",
        ),
        (
            lambda: LinearGuidance(abs, OPERATORS["averaging"], Y, noise_std=0, data_std=0),
            ValueError,
            "data_std must be a finite number above 0, got 0",
        ),
        (
            lambda: LinearGuidance(abs, OPERATORS["averaging"], Y, noise_std=-1, data_std=1),
            ValueError,
            "noise_std must be a finite number at least 0, got -1",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (network("vp"), (3, *SHAPE), "measurement must have 1 row, or .*, 3, got 2"),
        (network("vp"), (2, 1, 8, 8), r"operator must be for images of shape \(1, 8, 8\), got \(1, 4, 4\)"),
        (lambda x, times: torch.zeros_like(x), (2, *SHAPE), "network must be differentiable in x"),
    ],
)
def test_what_does_not_fit_is_refused_when_sampling(model, shape, message):
    sampler = fastscore.sampler("ddim", VPSDE(), lambda x, times: x, steps=2)
    with pytest.raises(ValueError, match=message):
        sampler.sample(shape, dtype=torch.float64, hooks=[guidance(model, OPERATORS["averaging"], Y)])

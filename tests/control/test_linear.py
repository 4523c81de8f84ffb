"""Linear measurements: normal data of independent pixels, where the guided score is that of the posterior."""

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, PhiloxNoise
from fastscore.control import LinearGuidance, LinearOperator, averaging, masking, matrix
from fastscore.samplers import Hook
from fastscore.testing.statistics import AnalyticModel, Gaussian, assert_same_law, ve_perturbation, vp_perturbation

SHAPE, STD, NOISE_STD = (1, 4, 4), 0.6, 0.1
MEAN = torch.linspace(-0.5, 0.5, 16, dtype=torch.float64).reshape(SHAPE)
DATA = Gaussian(MEAN, STD**2 * torch.eye(16, dtype=torch.float64))
MATRIX = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # A A^T: 6 eigenvalues
SENSING = matrix(MATRIX, SHAPE)
OPERATORS = {
    "averaging": averaging(2, SHAPE),
    "masking": masking(MEAN.cos() < 0.97),
    "sensing": SENSING,
    "conjugate gradients": LinearOperator(SENSING.forward, SENSING.adjoint, SHAPE, iterations=6),
}
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


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("averaging", "ddim", {"steps": 300}),
        ("masking", "dpmpp-2m", {"steps": 60}),
        ("sensing", "edm", {"steps": 60}),
        ("sensing", "pc", {"steps": 300}),
        ("sensing", "rk45", {"rtol": 1e-4, "atol": 1e-4}),
    ],
)
def test_samples_have_the_law_of_the_posterior(kind, name, options):
    """Mean and covariance in closed form."""
    operator, model = OPERATORS[kind], network("vp")
    y = measurements(operator, 1)
    sampler = fastscore.sampler(name, VPSDE(), model, eps=1e-4, **options)
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
    hook = LinearGuidance(model, operator, y, noise_std=0.0, data_std=STD)
    x = fastscore.sampler("ddim", VPSDE(), model, steps=40, eps=1e-4).sample((2, *SHAPE), hooks=[hook])
    assert x.dtype == torch.float32
    torch.testing.assert_close(operator.forward(x), y, rtol=0, atol=2e-3)


Y = measurements(OPERATORS["averaging"], 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: guidance(None, SENSING, Y), TypeError, "network must be callable as network.x, times., got NoneType"),
        (lambda: guidance(network("vp"), abs, Y), TypeError, "operator must be a LinearOperator, got builtin"),
        (
            lambda: guidance(network("vp"), SENSING, Y),
            ValueError,
            r"measurement must have .* \(6,\), got \(2, 1, 2, 2\)",
        ),
        (lambda: guidance(network("vp"), OPERATORS["averaging"], Y.int()), TypeError, "measurement must be float32"),
        (
            lambda: guidance(network("vp"), OPERATORS["averaging"], Y / 0),
            ValueError,
            "measurement must be finite, got NaN or infinity",
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

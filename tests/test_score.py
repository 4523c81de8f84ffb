"""Conversions between predictions, and time labels."""

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, SubVPSDE
from fastscore.score import PREDICTIONS, convention_of

SDES = [VESDE(), VPSDE(), SubVPSDE()]
TIMES = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
TARGETS = PREDICTIONS[:4]


def truth(sde, clean, eps):
    """Every prediction of a state made of a known image and known noise, each by its definition."""
    alpha, sigma = sde.marginal(TIMES)
    ratio, data = sigma / alpha, 0.5
    c_skip, c_out = data**2 / (ratio**2 + data**2), ratio * data / (ratio**2 + data**2).sqrt()
    x = alpha * clean + sigma * eps
    return x, {
        "score": -eps / sigma,
        "noise": eps.expand_as(sigma),
        "denoised": clean.expand_as(sigma),
        "v": alpha * eps - sigma * clean,
        "edm": (clean - c_skip * x / alpha) / c_out,
    }


@pytest.mark.parametrize("sde", SDES, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_prediction_converts_to_every_target(sde, prediction, target):
    clean, eps = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.3, dtype=torch.float64)
    x, values = truth(sde, clean, eps)
    p, q = Convention(prediction, "time").coefficients(sde, TIMES, target)
    # the truth itself is formed from x with float64 rounding, amplified by alpha / sigma or its inverse
    alpha, sigma = sde.marginal(TIMES)
    slack = 64 * torch.finfo(torch.float64).eps * (alpha / sigma + sigma / alpha + 1)
    error = (p * x + q * values[prediction] - values[target]).abs() / values[target].abs()
    assert torch.all(error <= slack), error


def test_own_prediction_is_not_touched():
    for prediction in TARGETS:
        p, q = Convention(prediction, "time").coefficients(VPSDE(), TIMES, prediction)
        assert torch.equal(p, torch.zeros_like(TIMES))
        assert torch.equal(q, torch.ones_like(TIMES))


def test_labels():
    sde, t = VESDE(), TIMES
    assert torch.equal(Convention(label="time").labels(sde, t), t)
    assert torch.equal(Convention(label="scaled_time").labels(sde, t), 999 * t)
    assert torch.equal(Convention(label="sigma").labels(sde, t), sde.sigma(t))
    torch.testing.assert_close(Convention(label="log_sigma").labels(sde, t), sde.sigma(t).log() / 4)
    torch.testing.assert_close(Convention(label="chain_index", num_scales=1000).labels(sde, t), 999 * t)
    index = Convention(label="noise_index", num_scales=11).labels(sde, torch.linspace(0, 1, 11, dtype=torch.float64))
    assert index.dtype == torch.int64
    assert index.tolist() == list(range(10, -1, -1))


def test_index_labels_use_the_marginal_of_the_chain():
    n, sde = 50, VPSDE()
    chain = sde.discretize(n)
    _, q = Convention("noise", "chain_index", n).coefficients(sde, chain.times)
    torch.testing.assert_close(-1 / q, chain.sigma, rtol=1e-14, atol=0)
    ve = VESDE()
    alpha, sigma = Convention("noise", "noise_index", n).marginal(ve, ve.discretize(n).times)
    torch.testing.assert_close(sigma, ve.chain_sigmas(n), rtol=1e-14, atol=0)
    assert torch.equal(alpha, torch.ones(n, dtype=torch.float64))


def test_edm_input_scale():
    sde = VPSDE()
    alpha, sigma = sde.marginal(TIMES)
    c_in = ((sigma / alpha) ** 2 + 0.25).rsqrt()
    torch.testing.assert_close(Convention("edm", "log_sigma").input_scale(sde, TIMES), c_in / alpha, rtol=1e-13, atol=0)
    assert torch.equal(Convention("noise", "time").input_scale(sde, TIMES), torch.ones_like(TIMES))


def test_convention_of():
    model = torch.nn.Identity()
    assert convention_of(model, VESDE()) == Convention("score", "sigma")
    assert convention_of(model, SubVPSDE()) == Convention("noise", "scaled_time")
    model.convention = Convention("v", "time")
    assert convention_of(model, VESDE()) == Convention("v", "time")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "epsilon"}, "prediction must be one of score, noise, denoised, v, edm, got 'epsilon'"),
        ({"label": "index"}, "label must be one of time, scaled_time, .* got 'index'"),
        ({"label": "chain_index"}, "label='chain_index' needs num_scales, .* got None"),
        ({"label": "noise_index", "num_scales": 0}, "got 0"),
        ({"sigma_data": 0.0}, "sigma_data must be positive, got 0.0"),
    ],
)
def test_bad_conventions(arguments, message):
    with pytest.raises(ValueError, match=message):
        Convention(**arguments)


def test_bad_target():
    with pytest.raises(ValueError, match="target must be one of score, noise, denoised, v, got 'edm'"):
        Convention().coefficients(VPSDE(), TIMES, "edm")

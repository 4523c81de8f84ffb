"""The variational bounds that guided-diffusion computed, term by term, with its noise.

Two things of the published code are put back here. Its decoder takes a tanh for the normal distribution function and
bounds probabilities from below, which changes L_0 by up to 5e-4 bits. Its L_T, 1e-5 bits and less, is a difference of
float32 numbers near 1.
"""

import math
from pathlib import Path

import pytest
import torch

from fastscore import Convention, DiscreteVPSDE, ReplayNoise, variational_bound
from fastscore.likelihood import decoder
from fastscore.testing.golden import golden_model, load_cases, load_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "guided_bound")


def replayed(case):
    model, noise = golden_model(case, load_mixture(FOLDER)), ReplayNoise(list(case.tensors["noise"]))
    model.record = True
    result = variational_bound(
        DiscreteVPSDE.from_betas(case.tensors["betas"].double(), min_log_snr=None),
        model,
        case.tensors["x_start"],
        data_range=(-1, 1),
        variance=case.args["model_var_type"],
        spacing=case.args["timestep_respacing"],
        clip=1.0 if case.args["clip_denoised"] else None,
        noise=noise,
        convention=Convention("noise", "timestep"),
    )
    assert noise.position == len(noise.tensors)
    return result, model


def assert_near(case, name, value, expected):
    """Every element within 1e-5 of itself, or within three times the float32 noise of the case."""
    error = (value - expected.double()).abs()
    limit = (1e-5 * expected.double().abs()).clamp(min=3 * case.sensitivity[name])
    worst = float((error / limit).max())
    print(f"{case.id} {name}: {float(error.max()):.1e}, {worst:.2f} of what is allowed")
    assert worst <= 1, name


def published_log_interval(a, b):
    def cdf(x):
        x = x.clamp(-100, 100)
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    return (cdf(b) - cdf(a)).clamp(min=1e-12).log()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_term_but_the_decoder(case):
    result, model = replayed(case)
    assert_near(case, "vb", result.terms[:, :-1], case.tensors["vb"][:, :-1])
    assert_near(case, "xstart_mse", result.xstart_mse, case.tensors["xstart_mse"])
    assert_near(case, "mse", result.mse, case.tensors["mse"])
    labels = torch.stack([label[0].double() for label in model.labels])
    assert torch.equal(labels, case.tensors["call_labels"].double())
    assert len(model.inputs) == 3
    for call, state in model.inputs.items():
        torch.testing.assert_close(state, case.tensors[f"call_x_{call}"], rtol=0, atol=1e-6)
    # the decoder by the normal distribution itself
    assert float((result.terms[:, -1] - case.tensors["vb"][:, -1]).abs().max()) < 6e-4


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_decoder_and_the_total(case, monkeypatch):
    monkeypatch.setattr(decoder, "log_interval", published_log_interval)
    result, _ = replayed(case)
    assert_near(case, "vb", result.terms, case.tensors["vb"])
    assert_near(case, "total_bpd", result.bits_per_dim, case.tensors["total_bpd"])
    torch.testing.assert_close(result.bits_per_dim, result.prior + result.terms.sum(1))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_prior(case):
    """One formula gives the published value in float32, and ours in float64."""
    alpha_bar = (1 - case.tensors["betas"].double()).prod()

    def prior(dtype):
        log_variance = (1 - alpha_bar).log().to(dtype)
        mean = alpha_bar.sqrt().to(dtype) * case.tensors["x_start"].to(dtype)
        return 0.5 * (-1.0 - log_variance + log_variance.exp() + mean**2).flatten(1).mean(1) / math.log(2)

    torch.testing.assert_close(prior(torch.float32), case.tensors["prior_bpd"], rtol=1e-5, atol=0)
    # the last beta of the cosine schedule leaves 1e-10, of which 1 - 1e-10 has six digits
    torch.testing.assert_close(replayed(case)[0].prior, prior(torch.float64), rtol=1e-5, atol=0)

"""Consistency sampling: published runs, parity with the reference, the law, options, errors."""

import itertools
import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, ConsistencySampler, Convention, DiscreteVPSDE, SubVPSDE
from fastscore.noise import PhiloxNoise, ReplayNoise
from fastscore.reference.samplers import consistency_sampler
from fastscore.samplers import Hook
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.golden_models import ConsistencyFunction
from fastscore.testing.statistics import Gaussian, RecordingModel, assert_same_law

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
MIXTURE = load_mixture(FOLDER)
CASES = [
    *load_cases(FOLDER, "cm", "cm.stochastic_iterative."),
    *load_cases(FOLDER, "cm", "cm.karras_sample.onestep."),
    *load_cases(FOLDER, "cm", "cm.karras_sample.multistep."),
]
SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
SHAPE = (2, 3, 4, 4)


class Network(RecordingModel):
    """Smooth, and of no particular meaning."""

    def evaluate(self, x, label):
        return torch.tanh(x * 0.7) - 0.1 * x + label.reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


class Watching(Hook):
    """Has the clean image formed, and leaves it."""

    def on_denoised(self, denoised, x, moment):
        return None


def published_times(sde, ts, t_min, t_max, rho, steps):
    """Levels number ts of a Karras grid of `steps` levels, as times; and that of t_min."""
    first, last = t_max ** (1 / rho), t_min ** (1 / rho)
    levels = torch.tensor([(first + i / (steps - 1) * (last - first)) ** rho for i in ts], dtype=torch.float64)
    return sde.inverse_log_snr(-2 * levels.log())


def bounded(network, sigma_data, sigma_min):
    """A consistency function with its boundary condition f(x, sigma_min) = x (arXiv 2303.01469, appendix C)."""

    def f(x, sigma):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        c_skip = sigma_data**2 / ((s - sigma_min) ** 2 + sigma_data**2)
        c_out = (s - sigma_min) * sigma_data * (s**2 + sigma_data**2).rsqrt()
        return c_skip * x + c_out * network((s**2 + sigma_data**2).rsqrt() * x, 250 * (sigma + 1e-44).log())

    return f


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_equals_published(case, backend):
    args = case.args
    model = golden_model(case, MIXTURE)
    model.record = True
    if "karras_sample" in case.id:
        t_min, t_max, clip = args["sigma_min"], args["sigma_max"], 1.0
        x, noise = case.tensors["noise"][0] * t_max, list(case.tensors["noise"][1:])
        ts = args["ts"] or [0, args["steps"] - 1]
        f = bounded(model, args["sigma_data"], t_min)
    else:
        t_min, t_max, clip = args["t_min"], args["t_max"], None
        x, noise, ts, f = case.tensors["x"], list(case.tensors["noise"]), args["ts"], model
    assert ts[-1] == args["steps"] - 1, "else the published sampler ends with noise"
    sde = VESDE(t_min / 2, t_max)
    times = published_times(sde, ts, t_min, t_max, args["rho"], args["steps"])
    sampler = ConsistencySampler(sde, f, steps=len(ts) - 1, spacing=times, clip=clip)
    with fastscore.backend(backend):
        result, info = sampler.sample(x, noise=ReplayNoise(noise), return_info=True)
    error = float((result - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    assert info.nfe == case.scalars["model_calls"]
    labels = torch.stack([label[0].double() for label in model.labels])
    expected = case.tensors["call_labels"].double().reshape(len(labels), -1)[:, 0]
    torch.testing.assert_close(labels, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("prediction", ["denoised", "edm", "noise"])
@pytest.mark.parametrize("sde_name", SDES)
def test_equals_the_literal_reference(sde_name, prediction, steps, clip):
    """In float64, with and without hooks that do nothing, on both backends."""
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    sampler = ConsistencySampler(sde, Network(), steps=steps, convention=convention, clip=clip)
    x = sde.prior_sample(SHAPE, noise=PhiloxNoise(5), dtype=torch.float64)
    times = [step.t for step in sampler.plan().steps]
    expected = consistency_sampler(
        sde, Network(), x, PhiloxNoise(5), convention, times=times, end=sampler.eps, clip=clip
    )
    for backend, hooks in itertools.product(("cpu", "reference"), ([], [Watching()])):
        with fastscore.backend(backend):
            result = sampler.sample(x, seed=5, hooks=hooks)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_an_exact_function_gives_the_law(steps):
    """Of the data at eps; in any number of steps, for noise and function undo each other."""
    mean, std, sigma_eps = torch.tensor([0.4, -0.7], dtype=torch.float64).reshape(2, 1, 1), 0.3, 0.1
    sde = VESDE(0.05, 20.0)
    eps = float(sde.inverse_log_snr(-2 * math.log(sigma_eps)))
    sampler = ConsistencySampler(sde, ConsistencyFunction(mean, std, sigma_eps), steps=steps, eps=eps)
    data = Gaussian(mean, (std**2 + sigma_eps**2) * torch.eye(2, dtype=torch.float64))
    # the prior N(0, sigma_max^2) has not the data's mean: start from their sum
    latent = data.sample(20_000, seed=1) + math.sqrt(20.0**2 - sigma_eps**2) * PhiloxNoise(2).normal(
        (20_000, 2, 1, 1), dtype=torch.float64
    )
    assert_same_law(sampler.sample(latent, seed=3), data, f"{steps} steps")


def test_the_function_is_called_at_falling_noise_levels():
    model = Network(record=True)
    sampler = ConsistencySampler(VESDE(0.002, 80.0), model, steps=3, eps=1e-4)
    sampler.sample(SHAPE)
    first, last = 80.0 ** (1 / 7), float(sampler.sde.sigma(1e-4)) ** (1 / 7)
    expected = [(first + i / 3 * (last - first)) ** 7 for i in range(3)]
    torch.testing.assert_close([float(label[0]) for label in model.labels], expected, rtol=1e-6, atol=0)


def test_a_models_own_convention_is_used():
    model = Network()
    assert ConsistencySampler(VESDE(), model).convention == Convention("denoised", "sigma")
    model.convention = Convention("denoised", "log_sigma")
    assert ConsistencySampler(VESDE(), model).convention is model.convention
    given = Convention("edm", "log_sigma")
    assert ConsistencySampler(VESDE(), model, convention=given).convention is given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"ConsistencySampler: steps must be at least 1, got 0"),
        ({"spacing": "even"}, r"ConsistencySampler: spacing must be one of linear, .* got 'even'"),
        ({"rho": 0.5}, r"ConsistencySampler: rho must be a finite number of at least 1, got 0.5"),
        ({"spacing": torch.tensor([1.0, 0.5]), "steps": 3}, r"shape \(steps \+ 1,\) = \(4,\), got shape \(2,\)"),
    ],
)
def test_bad_construction(options, message):
    with pytest.raises(ValueError, match=message):
        ConsistencySampler(VESDE(), Network(), **options)

"""Langevin dynamics: recorded runs of NCSNv2, parity with the literal reference, laws, options, errors."""

import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, AnnealedLangevinSampler, Convention, DiscreteVPSDE, LangevinSampler, SubVPSDE
from fastscore.noise import PhiloxNoise, ReplayNoise
from fastscore.reference.samplers import annealed_langevin_sampler, langevin_sampler, spaced_times
from fastscore.samplers import Hook
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import Smooth
from fastscore.testing.statistics import (
    AnalyticModel,
    Gaussian,
    Mixture,
    assert_same_law,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
SHAPE = (2, 3, 4, 4)
PREDICTIONS = ("score", "noise", "denoised", "v", "edm")


class Watching(Hook):
    """Sees every clean image and changes nothing."""

    def on_denoised(self, denoised, x, moment):
        return None


def assert_equal(x, expected):
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


# Recorded runs

ALD = load_cases(FOLDER, "ncsnv2", "ncsnv2.ald.")


def setting(case):
    """SDE, network, convention, and the options that sampler and reference share."""
    args = case.args
    model = golden_model(case, load_mixture(FOLDER))
    model.record = True
    levels = args["num_classes"]
    options = {"step_size": args["step_lr"], "inner_steps": args["n_steps_each"]}
    options["denoise"] = args.get("denoise", False)
    sde = VESDE(args["sigma_end"], args["sigma_begin"])
    return sde, model, Convention("score", "noise_index", levels), levels, options


def assert_golden(case, x, model):
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    assert model.calls == case.scalars["model_calls"]
    if "call_labels" in case.tensors:
        assert [int(label[0]) for label in model.labels] == case.tensors["call_labels"].tolist()
        assert model.labels[0].dtype == torch.int64
    for i, seen in model.inputs.items():
        recorded = case.tensors[f"call_x_{i}"]
        assert (seen - recorded).abs().max() <= case.tolerance * max(1.0, float(recorded.abs().max()))


@pytest.mark.parametrize("case", ALD, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_annealed_langevin_equals_published(case, backend):
    sde, model, convention, levels, options = setting(case)
    sampler = AnnealedLangevinSampler(sde, model, steps=levels, convention=convention, **options)
    with fastscore.backend(backend):
        x, info = sampler.sample(case.tensors["x"], noise=ReplayNoise(list(case.tensors["noise"])), return_info=True)
    assert info.nfe == model.calls
    assert_golden(case, x, model)


@pytest.mark.parametrize("case", ALD, ids=str)
def test_literal_reference_equals_published(case):
    sde, model, convention, levels, options = setting(case)
    noise, times = ReplayNoise(list(case.tensors["noise"])), spaced_times(sde, "log_snr", levels, 0.0)
    x = annealed_langevin_sampler(sde, model, case.tensors["x"], noise, convention, times, **options)
    assert_golden(case, x, model)


def test_interpolation_is_annealed_langevin_with_noise_on_an_arc():
    """Between two recorded draws the noise goes along cos and sin of equally spaced angles, one chain for each."""
    (case,) = load_cases(FOLDER, "ncsnv2", "ncsnv2.interpolation")
    sde, model, convention, levels, options = setting(case)
    k = case.args["n_interpolations"]
    angles = torch.linspace(0, math.pi / 2, k).reshape(1, k, 1, 1, 1)
    first, second = (case.tensors[name][:, :, None] for name in ("noise_p", "noise_q"))
    noise = (first * angles.cos() + second * angles.sin()).flatten(1, 2)
    sampler = AnnealedLangevinSampler(sde, model, steps=levels, convention=convention, **options)
    latent = case.tensors["x"].repeat_interleave(k, 0)
    assert_golden(case, sampler.sample(latent, noise=ReplayNoise(list(noise))), model)


def test_every_recorded_case_has_its_place():
    assert len(load_cases(FOLDER, "ncsnv2")) == len(ALD) + 1


# The literal reference


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde_name", SDES)
def test_plain_equals_the_literal_reference(sde_name, prediction):
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    options = {"step_size": 1e-3, "steps": 20, "time": 0.3}
    sampler = LangevinSampler(sde, Smooth(), convention=convention, **options)
    latent = sde.prior_sample(SHAPE, noise=PhiloxNoise(1), dtype=torch.float64)
    expected = langevin_sampler(sde, Smooth(), latent, PhiloxNoise(1), convention, **options)
    assert_equal(sampler.sample(latent, seed=1), expected)
    assert_equal(sampler.sample(latent, seed=1, hooks=[Watching()]), expected)
    with fastscore.backend("reference"):
        assert_equal(sampler.sample(latent, seed=1), expected)


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde_name", SDES)
def test_annealed_equals_the_literal_reference(sde_name, prediction, denoise):
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    options = {"step_size": 1e-5, "inner_steps": 3, "denoise": denoise}
    times = spaced_times(sde, "log_snr", 7, 0.05)
    sampler = AnnealedLangevinSampler(sde, Smooth(), steps=7, eps=0.05, convention=convention, **options)
    latent = sde.prior_sample(SHAPE, noise=PhiloxNoise(1), dtype=torch.float64)
    expected = annealed_langevin_sampler(sde, Smooth(), latent, PhiloxNoise(1), convention, times, **options)
    x, info = sampler.sample(latent, seed=1, return_info=True)
    assert info.nfe == 7 * 3 + denoise
    assert_equal(x, expected)
    assert_equal(sampler.sample(latent, seed=1, hooks=[Watching()]), expected)
    with fastscore.backend("reference"):
        assert_equal(sampler.sample(latent, seed=1), expected)


@pytest.mark.parametrize("sde_name", SDES)
def test_clipping_is_that_of_a_clipped_network(sde_name):
    sde, convention, bound = SDES[sde_name], Convention("denoised", "log_sigma"), 0.3
    times, latent = spaced_times(sde, "karras", 4, 0.05), torch.randn(SHAPE, dtype=torch.float64)
    sampler = AnnealedLangevinSampler(
        sde, Smooth(), step_size=1e-5, steps=4, spacing="karras", eps=0.05, clip=bound, convention=convention
    )
    expected = annealed_langevin_sampler(
        sde,
        lambda x, t: Smooth()(x, t).clamp(-bound, bound),
        latent,
        PhiloxNoise(2),
        convention,
        times,
        step_size=1e-5,
        inner_steps=5,
    )
    assert_equal(sampler.sample(latent, seed=2), expected)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("sde_name", SDES)
def test_few_levels(sde_name, steps):
    sampler = AnnealedLangevinSampler(SDES[sde_name], Smooth(), step_size=1e-6, steps=steps, inner_steps=1)
    x, info = sampler.sample(SHAPE, return_info=True)
    assert info.nfe == steps + 1
    assert torch.isfinite(x).all()


def test_levels_of_ncsn_and_their_steps():
    """Geometric from sigma_max to sigma_min, e_i = step_size (sigma_i / sigma_L)^2."""
    sampler = AnnealedLangevinSampler(
        VESDE(0.01, 1.0),
        Smooth(),
        step_size=2e-5,
        steps=10,
        inner_steps=100,
        denoise=False,
        convention=Convention("score", "noise_index", 10),
    )
    rows = sampler.plan().steps
    assert [row.label for row in rows] == [i for i in range(10) for _ in range(100)]
    for i, row in enumerate(rows):
        step = 2e-5 * (100 ** (1 - i // 100 / 9)) ** 2
        assert row.coefficients == pytest.approx((1.0, step, math.sqrt(2 * step)), rel=1e-12)


# Starts


class First(Hook):
    def __init__(self):
        self.x = None

    def before_step(self, x, moment):
        if moment.index == 0:
            self.x = x.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_uniform_start_follows_from_the_seed(dtype):
    first, shape = First(), (64, 8, 8)
    sampler = AnnealedLangevinSampler(VESDE(), Smooth(), step_size=1e-6, steps=2, initial="uniform")
    sampler.sample(shape, seed=3, hooks=[first], dtype=dtype)
    assert first.x.dtype == dtype
    z = PhiloxNoise(3).normal(shape, dtype=torch.float64 if dtype == torch.float64 else torch.float32, draw=0)
    expected = (torch.erf(z.double() / math.sqrt(2)) / 2 + 0.5).to(dtype)
    torch.testing.assert_close(first.x, expected)
    moments = [float((first.x.double() ** p).mean()) for p in (1, 2)]
    n = 64 * 64
    assert abs(moments[0] - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(moments[1] - 1 / 3) < 4 * math.sqrt(4 / 45 / n)


def test_plain_starts_from_the_prior_of_its_time():
    first, sde = First(), VESDE(0.01, 10.0)
    LangevinSampler(sde, Smooth(), step_size=1e-6, steps=1, time=0.5).sample(SHAPE, seed=3, hooks=[first])
    z = PhiloxNoise(3).normal(SHAPE, dtype=torch.float32, draw=0)
    torch.testing.assert_close(first.x, z * float(sde.sigma(0.5)))


# Laws


def exact_network(sde_name, data):
    if sde_name == "ve":
        return AnalyticModel(data, ve_perturbation, "score")
    return AnalyticModel(data, vp_perturbation(subvp=sde_name == "subvp"), "noise")


def overlapping():
    """Two modes that Langevin dynamics passes between."""
    means = torch.tensor([[-0.4, 0.1], [0.5, -0.2]], dtype=torch.float64).reshape(2, 2, 1, 1)
    return Mixture(means, torch.tensor([0.7, 0.3], dtype=torch.float64), 0.35)


def perturbed(data, alpha, sigma):
    if isinstance(data, Gaussian):
        return Gaussian(alpha * data.mean, alpha**2 * data.covariance + sigma**2 * torch.eye(2, dtype=torch.float64))
    return Mixture(alpha * data.means, data.weights, math.sqrt(alpha**2 * data.std**2 + sigma**2))


@pytest.mark.no_poison
@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("data", [gaussian_2d(), overlapping()], ids=["gaussian", "mixture"])
def test_plain_reaches_the_marginal_of_its_time(sde_name, data):
    sde, time = SDES[sde_name], 0.2
    alpha, sigma = (float(c) for c in sde.marginal(time))
    sampler = LangevinSampler(sde, exact_network(sde_name, data), step_size=4e-3, steps=800, time=time)
    x = sampler.sample((2000, *data.shape), seed=1)
    assert_same_law(x, perturbed(data, alpha, sigma), f"{sde_name} Langevin")


@pytest.mark.no_poison
@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_annealed_reaches_the_data(sde_name, data):
    sde = SDES[sde_name]
    # dense around the width of the data, where the annealing must be slow
    times = sde.inverse_log_snr(-2 * torch.linspace(math.log(3.0), math.log(0.02), 60, dtype=torch.float64))
    sampler = AnnealedLangevinSampler(
        sde, exact_network(sde_name, data), step_size=0.2 * 0.02**2, steps=60, inner_steps=10, spacing=times
    )
    assert_same_law(sampler.sample((2000, *data.shape), seed=1), data, f"{sde_name} annealed Langevin")


def test_plain_has_the_bias_of_its_step():
    """On N(0, v) the variance comes to v / (1 - step / (2 v)) exactly, by the recursion of its own rows."""
    step, variance = 0.05, 0.3
    sampler = LangevinSampler(VESDE(), Smooth(), step_size=step, steps=400, convention=Convention("score", "time"))
    value = 4.0
    for row in sampler.plan().steps:
        a, b, s = row.coefficients
        value = (a - b / variance) ** 2 * value + s**2
    assert value == pytest.approx(variance / (1 - step / (2 * variance)), rel=1e-12)


# Errors

VP, NET = VPSDE(), Smooth()


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (
            LangevinSampler,
            {"step_size": 0.0},
            ValueError,
            r"LangevinSampler: step_size must be a finite number above 0",
        ),
        (LangevinSampler, {"step_size": math.inf}, ValueError, r"step_size must be a finite number above 0, got inf"),
        (LangevinSampler, {"time": 0.0}, ValueError, r"time must be a finite number above 0 and at most 1, got 0.0"),
        (LangevinSampler, {"time": 1.5}, ValueError, r"time must be a finite number above 0 and at most 1, got 1.5"),
        (
            AnnealedLangevinSampler,
            {"step_size": -1.0},
            ValueError,
            r"step_size must be a finite number above 0, got -1.0",
        ),
        (AnnealedLangevinSampler, {"inner_steps": 0}, ValueError, r"inner_steps must be at least 1, got 0"),
        (AnnealedLangevinSampler, {"inner_steps": 2.0}, TypeError, r"inner_steps must be an integer, got 2.0"),
        (
            AnnealedLangevinSampler,
            {"initial": "zero"},
            ValueError,
            r"must be one of prior, uniform, got 'zero'",
        ),
        (AnnealedLangevinSampler, {"spacing": torch.linspace(1, 0.1, 4)}, ValueError, r"must fall strictly"),
        (AnnealedLangevinSampler, {"steps": 0}, ValueError, r"steps must be at least 1, got 0"),
    ],
)
def test_bad_construction(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(VP, NET, **({"step_size": 1e-4, "steps": 3} | options))

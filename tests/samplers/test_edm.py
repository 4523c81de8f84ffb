"""The samplers of EDM and ancestral sampling: parity with the literal reference, laws, peers, options, errors."""

import math

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, EDMSampler, EulerAncestralSampler, SubVPSDE
from fastscore.noise import ReplayNoise, TorchNoise
from fastscore.reference.samplers import edm_sampler, euler_ancestral_sampler, spaced_times
from fastscore.samplers import Hook
from fastscore.testing.networks import Smooth
from fastscore.testing.statistics import (
    AnalyticModel,
    assert_same_law,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
SHAPE = (2, 3, 4, 4)
STEPS = 8
CHURN = {"s_churn": 3.0, "s_min": 0.05, "s_max": 5.0, "s_noise": 1.01}
EDM = {
    "euler": {"order": 1},
    "heun": {},
    "midpoint": {"alpha": 0.5},
    "alpha": {"alpha": 0.7, "stage_rho": 3.0},
    "dpm_2": {"alpha": 0.5, "stage_rho": math.inf},
    "euler churned": {"order": 1, **CHURN},
    "heun churned": CHURN,
    "most churn": {"alpha": 0.5, "s_churn": 1e9},
    "to eps": {"denoise": False, **CHURN},
}
ANCESTRAL = {
    "order 1": {},
    "order 2": {"order": 2},
    "less noise": {"eta": 0.5, "s_noise": 0.9},
    "less noise, order 2": {"order": 2, "eta": 0.7, "s_noise": 1.1},
    "more noise": {"eta": 3.0},
    "no noise": {"eta": 0.0},
    "to eps": {"order": 2, "denoise": False},
}
VARIANTS = [("edm", name, EDM[name]) for name in EDM] + [("ancestral", name, ANCESTRAL[name]) for name in ANCESTRAL]
every_variant = pytest.mark.parametrize(
    ("family", "options"), [pytest.param(f, o, id=f"{f}-{name}") for f, name, o in VARIANTS]
)
FAMILIES = {"edm": (EDMSampler, edm_sampler), "ancestral": (EulerAncestralSampler, euler_ancestral_sampler)}


class Watching(Hook):
    """Sees every clean image and changes nothing."""

    def on_denoised(self, denoised, x, moment):
        return None


def draws(shape=SHAPE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return ReplayNoise([torch.randn(shape, dtype=dtype, generator=generator) for _ in range(2 * STEPS)])


def assert_equal(x, expected):
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def pair(family, sde, model, latent, times, convention=None, steps=STEPS, **options):
    """The sampler, and what the reference makes of it."""
    cls, reference = FAMILIES[family]
    sampler = cls(sde, model, steps=steps, spacing=times, convention=convention, **options)
    return sampler, reference(sde, model, latent, draws(), sampler.convention, times, **options)


def grid(sde, options, steps=STEPS, spacing="karras", eps=0.02):
    return spaced_times(sde, spacing, steps + (not options.get("denoise", True)), eps)


@every_variant
@pytest.mark.parametrize("sde_name", SDES)
def test_equals_the_literal_reference(sde_name, family, options):
    sde = SDES[sde_name]
    latent = sde.prior_sample(SHAPE, dtype=torch.float64)
    sampler, expected = pair(family, sde, Smooth(), latent, grid(sde, options), **options)
    assert_equal(sampler.sample(latent, noise=draws()), expected)
    assert_equal(sampler.sample(latent, noise=draws(), hooks=[Watching()]), expected)
    with fastscore.backend("reference"):
        assert_equal(sampler.sample(latent, noise=draws()), expected)


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize(("family", "options"), [("edm", CHURN), ("ancestral", {"order": 2})])
def test_every_prediction_equals_the_literal_reference(prediction, sde_name, family, options):
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    latent = sde.prior_sample(SHAPE, dtype=torch.float64)
    sampler, expected = pair(family, sde, Smooth(), latent, grid(sde, options), convention, **options)
    assert_equal(sampler.sample(latent, noise=draws()), expected)
    assert_equal(sampler.sample(latent, noise=draws(), hooks=[Watching()]), expected)


@pytest.mark.parametrize("spacing", ["linear", "quadratic", "log_snr", "karras"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("denoise", [True, False])
def test_every_spacing_is_the_given_times_of_the_same_name(spacing, family, denoise):
    for sde in SDES.values():
        named = FAMILIES[family][0](sde, Smooth(), steps=STEPS, spacing=spacing, rho=5.0, eps=0.02, denoise=denoise)
        times = spaced_times(sde, spacing, STEPS + (not denoise), 0.02, 5.0)
        given = FAMILIES[family][0](sde, Smooth(), steps=STEPS, spacing=times, eps=0.02, denoise=denoise)
        latent = sde.prior_sample(SHAPE, dtype=torch.float64)
        assert_equal(named.sample(latent, noise=draws()), given.sample(latent, noise=draws()))


@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_clipping_is_that_of_a_clipped_network(sde_name, family):
    sde, convention, bound = SDES[sde_name], Convention("denoised", "log_sigma"), 0.3
    latent, times = sde.prior_sample(SHAPE, dtype=torch.float64), grid(sde, {})
    _, expected = pair(family, sde, lambda x, t: Smooth()(x, t).clamp(-bound, bound), latent, times, convention)
    sampler = FAMILIES[family][0](sde, Smooth(), steps=STEPS, spacing=times, convention=convention, clip=bound)
    assert_equal(sampler.sample(latent, noise=draws()), expected)
    free = FAMILIES[family][0](sde, Smooth(), steps=STEPS, spacing=times, convention=convention)
    assert not torch.allclose(free.sample(latent, noise=draws()), expected, rtol=1e-3)


@every_variant
@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(sde_name, steps, family, options):
    sde = SDES[sde_name]
    latent = sde.prior_sample(SHAPE, dtype=torch.float64)
    sampler, expected = pair(family, sde, Smooth(), latent, grid(sde, options, steps), steps=steps, **options)
    assert_equal(sampler.sample(latent, noise=draws()), expected)


def test_one_step_to_the_clean_image_starts_at_the_first_level():
    sampler = EDMSampler(VPSDE(), Smooth(), steps=1)
    assert [(step.t, step.t_next) for step in sampler.plan().steps] == [(1.0, 0.0)]


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 35),
        ({"order": 1}, 18),
        ({"denoise": False}, 36),
        ({"alpha": 0.5}, 36),
        ({"alpha": 0.5, "stage_rho": math.inf}, 35),
        ({"s_churn": 40.0}, 35),
    ],
)
def test_network_calls(options, calls):
    _, info = EDMSampler(VESDE(0.002, 80.0), Smooth(), **options).sample(SHAPE, return_info=True)
    assert info.nfe == calls


def test_churn_costs_one_row_in_all():
    rows = {churn: len(EDMSampler(VESDE(0.002, 80.0), Smooth(), s_churn=churn).plan().steps) for churn in (0.0, 40.0)}
    assert rows == {0.0: 35, 40.0: 36}
    outside = EDMSampler(VESDE(0.002, 80.0), Smooth(), s_churn=40.0, s_max=50.0).plan()
    assert len(outside.steps) == 35
    assert sum(step.draws for step in outside.steps) == sum(
        level <= 50.0 for level in (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7)) for i in range(18))
        for level in [level**7]
    )  # fmt: skip


def test_eta_zero_is_eulers_method():
    latent = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sde in SDES.values():
        ancestral = EulerAncestralSampler(sde, Smooth(), steps=9, eta=0.0, eps=0.02).sample(latent)
        assert_equal(ancestral, EDMSampler(sde, Smooth(), steps=9, order=1, eps=0.02).sample(latent))


# Laws


def exact_network(sde_name, data):
    if sde_name == "ve":
        return AnalyticModel(data, ve_perturbation, "score")
    return AnalyticModel(data, vp_perturbation(subvp=sde_name == "subvp"), "noise")


LAWS = {
    "churn": (EDMSampler, {"s_churn": 30.0, "steps": 100}),
    "churn, euler": (EDMSampler, {"s_churn": 30.0, "steps": 400, "order": 1}),
    "ancestral": (EulerAncestralSampler, {"steps": 400}),
    "ancestral, order 2": (EulerAncestralSampler, {"steps": 200, "order": 2, "eta": 0.8}),
}


@pytest.mark.no_poison
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("sde_name", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_the_law_of_the_data(name, sde_name, data):
    cls, options = LAWS[name]
    sampler = cls(SDES[sde_name], exact_network(sde_name, data), eps=1e-3, **options)
    assert_same_law(sampler.sample((2000, *data.shape), seed=1), data, f"{sde_name} {name}")


# Peers


def k_diffusion():
    from fastscore.testing.peers import k_diffusion_sampling

    return k_diffusion_sampling()


K = [
    ("sample_euler", EDMSampler, {"order": 1}, {}),
    ("sample_euler", EDMSampler, {"order": 1, "s_churn": 4.0, "s_noise": 1.01}, {"s_churn": 4.0, "s_noise": 1.01}),
    ("sample_heun", EDMSampler, {}, {}),
    ("sample_heun", EDMSampler, {"s_churn": 50.0, "s_noise": 0.99}, {"s_churn": 50.0, "s_noise": 0.99}),
    ("sample_dpm_2", EDMSampler, {"alpha": 0.5, "stage_rho": math.inf}, {}),
    ("sample_dpm_2", EDMSampler, {"alpha": 0.5, "stage_rho": math.inf, "s_churn": 4.0}, {"s_churn": 4.0}),
    ("sample_euler_ancestral", EulerAncestralSampler, {"eta": 0.6}, {"eta": 0.6}),
    ("sample_dpm_2_ancestral", EulerAncestralSampler, {"order": 2, "s_noise": 0.9}, {"s_noise": 0.9}),
]


@pytest.mark.parametrize(("name", "cls", "ours", "theirs"), K)
def test_equals_k_diffusion(name, cls, ours, theirs):
    """Both draw from torch's generator, in the same order."""
    sampling = k_diffusion()
    n, low, high = 12, 0.02, 8.0
    sigmas = sampling.get_sigmas_karras(n, low, high).double()
    sde, data = VESDE(low, high), mixture_2d()
    model = AnalyticModel(data, ve_perturbation, "denoised")
    latent = sde.prior_sample((8, *data.shape), dtype=torch.float64)
    torch.manual_seed(5)
    expected = getattr(sampling, name)(model, latent.clone(), sigmas, disable=True, **theirs)
    times = sde.inverse_log_snr(-2 * sigmas[:-1].log())
    sampler = cls(sde, model, steps=n, spacing=times, convention=Convention("denoised", "sigma"), **ours)
    assert_equal(sampler.sample(latent, noise=TorchNoise(torch.Generator().manual_seed(5))), expected)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_equals_diffusers(name):
    """Variance preserving on our side, x / alpha on theirs; they compute in float32."""
    import diffusers

    n, data = 14, mixture_2d()
    scheduler = getattr(diffusers, name)(1000, 1e-4, 0.02, "linear", timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    sde = DiscreteVPSDE.from_alphas_cumprod(scheduler.alphas_cumprod)

    def perturb(label):
        log_alpha = sde.log_alpha(sde.times(label))
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    model = AnalyticModel(data, perturb, "noise")
    sampler = {
        "EulerDiscreteScheduler": lambda **o: EDMSampler(sde, model, order=1, **o),
        "HeunDiscreteScheduler": lambda **o: EDMSampler(sde, model, **o),
        "EulerAncestralDiscreteScheduler": lambda **o: EulerAncestralSampler(sde, model, **o),
    }[name]
    latent = torch.randn((8, *data.shape), generator=torch.Generator().manual_seed(6))
    x = latent * scheduler.init_noise_sigma
    generator, extra = torch.Generator().manual_seed(7), {}
    if "Ancestral" in name:
        extra["generator"] = generator
    for t in scheduler.timesteps:
        h = model(scheduler.scale_model_input(x, t), t.double().expand(len(x)))
        x = scheduler.step(h, t, x, **extra).prev_sample
    levels = torch.unique(scheduler.timesteps.double()).flip(0)
    start = latent * scheduler.init_noise_sigma * float(sde.alpha(1.0))
    ours = sampler(steps=n, spacing=sde.times(levels)).sample(
        start, noise=TorchNoise(torch.Generator().manual_seed(7))
    )  # fmt: skip
    torch.testing.assert_close(ours, x, rtol=0.0, atol=2e-6)


# Errors

VP, NET = VPSDE(), Smooth()
BAD = [
    (EDMSampler, {"order": 3}, r"EDMSampler: order must be 1 or 2, got 3"),
    (EDMSampler, {"alpha": 0.0}, r"alpha must be a finite number above 0 and at most 1, got 0.0"),
    (EDMSampler, {"alpha": math.nan}, r"alpha must be a finite number above 0 and at most 1, got nan"),
    (EDMSampler, {"stage_rho": 0.5}, r"stage_rho must be at least 1, got 0.5"),
    (EDMSampler, {"s_churn": -1.0}, r"s_churn must be a finite number at least 0, got -1.0"),
    (EDMSampler, {"s_churn": math.inf}, r"s_churn must be a finite number at least 0, got inf"),
    (EDMSampler, {"s_noise": math.nan}, r"s_noise must be a finite number at least 0, got nan"),
    (EDMSampler, {"s_min": 2.0, "s_max": 1.0}, r"0 <= s_min <= s_max, got 2.0, 1.0"),
    (EDMSampler, {"spacing": torch.linspace(1, 0.1, 19)}, r"must fall strictly and have shape"),
    (EDMSampler, {"spacing": torch.linspace(1, 0.0, 18)}, r"VPSDE must have signal and noise at every time"),
    (EDMSampler, {"rho": 0.0}, r"rho must be a finite number of at least 1, got 0.0"),
    (EulerAncestralSampler, {"order": 0}, r"EulerAncestralSampler: order must be 1 or 2, got 0"),
    (EulerAncestralSampler, {"eta": -0.1}, r"eta must be a finite number at least 0, got -0.1"),
    (EulerAncestralSampler, {"s_noise": math.inf}, r"s_noise must be a finite number at least 0, got inf"),
]


@pytest.mark.parametrize(("cls", "options", "message"), BAD)
def test_bad_construction(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(VP, NET, **({"steps": 18} | options))

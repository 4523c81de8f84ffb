"""Ancestral sampling as its user meets it: parity with the reference, learned variances, errors, diffusers live."""

import itertools

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DDPMSampler, DiscreteVPSDE, SubVPSDE
from fastscore.noise import PhiloxNoise, TorchNoise
from fastscore.reference.samplers import ddpm_sampler
from fastscore.samplers import DynamicThresholding, Hook
from fastscore.testing.golden_models import WithVariance
from fastscore.testing.statistics import AnalyticModel, RecordingModel, mixture_2d

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
SHAPE = (2, 3, 4, 4)
PREDICTIONS = ("score", "noise", "denoised", "v", "edm")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


class Network(RecordingModel):
    """Smooth, and of no particular meaning."""

    def evaluate(self, x, label):
        return torch.tanh(x * 0.7) - 0.1 * x + label.reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


class Constant(RecordingModel):
    """A network with the same v everywhere."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def evaluate(self, x, label):
        return torch.cat([0.3 * x, torch.full_like(x, self.v)], 1)


class Watching(Hook):
    """Has the clean image formed, and leaves it."""

    def on_denoised(self, denoised, x, moment):
        return None


def network(variance):
    return WithVariance(Network()) if variance == "learned_range" else Network()


def state(sde, seed=5):
    return sde.prior_sample(SHAPE, noise=PhiloxNoise(seed), dtype=torch.float64)


def assert_equal(x, expected):
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("variance", "clip", "denoise"),
    [
        ("fixed_small", None, True),
        ("fixed_small", 0.8, False),
        ("fixed_large", 0.8, True),
        ("fixed_large", None, False),
        ("learned_range", None, False),
        ("learned_range", 0.8, True),
    ],
)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde_name", SDES)
def test_equals_the_literal_reference(sde_name, prediction, variance, clip, denoise):
    """In float64, with and without hooks that do nothing, on both backends."""
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    spacing = "quadratic" if sde_name != "discrete" else "4,3,2" if denoise else "trailing"
    sampler = DDPMSampler(
        sde,
        network(variance),
        steps=9,
        spacing=spacing,
        variance=variance,
        clip=clip,
        denoise=denoise,
        convention=convention,
    )
    times = [step.t for step in sampler.plan().steps]
    x, end = state(sde), None if denoise else sampler.eps
    options = {"times": times, "end": end, "variance": variance, "clip": clip}
    expected = ddpm_sampler(sde, network(variance), x, PhiloxNoise(5), convention, **options)
    for backend, hooks in itertools.product(("cpu", "reference"), ([], [Watching()])):
        with fastscore.backend(backend):
            assert_equal(sampler.sample(x, seed=5, hooks=hooks), expected)


@pytest.mark.parametrize(("v", "variance"), [(1.0, "fixed_large"), (-1.0, "fixed_small")])
@pytest.mark.parametrize("sde_name", SDES)
def test_the_ends_of_the_learned_range_are_the_fixed_variances(sde_name, v, variance):
    sde, options = SDES[sde_name], {"steps": 12, "clip": 1.0}
    learned = DDPMSampler(sde, Constant(v), variance="learned_range", **options)
    fixed = DDPMSampler(sde, lambda x, label: 0.3 * x, variance=variance, **options)
    x = state(sde)
    assert_equal(learned.sample(x, seed=3), fixed.sample(x, seed=3))


def test_every_level_is_the_chain_of_the_paper():
    """Over all levels, fixed_large is algorithm 2 of Ho et al., in its betas and in eps."""
    betas = torch.linspace(1e-4, 0.05, 60, dtype=torch.float64)
    sde = DiscreteVPSDE.from_betas(betas, min_log_snr=None)
    x = expected = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    alpha_bar = (1 - betas).cumprod(0)
    for t in reversed(range(60)):
        eps = Network()(expected, torch.full((2,), float(t), dtype=torch.float64))
        mean = (expected - betas[t] / (1 - alpha_bar[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        expected = mean
        if t > 0:
            z = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
            expected = mean + betas[t].sqrt() * z
    sampler = DDPMSampler(sde, Network(), variance="fixed_large")
    assert_equal(sampler.sample(x, noise=TorchNoise(torch.Generator().manual_seed(1))), expected)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("sde_name", SDES)
def test_any_number_of_steps(sde_name, steps, variance):
    """Also few, and fewer than a VP chain needs."""
    for denoise in (True, False):
        model = network(variance)
        sampler = DDPMSampler(SDES[sde_name], model, steps=steps, variance=variance, denoise=denoise)
        x, info = sampler.sample(SHAPE, return_info=True)
        assert x.shape == SHAPE
        assert torch.isfinite(x).all()
        assert info.nfe == model.calls == steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    sampler = DDPMSampler(SDES["discrete"], network("learned_range"), steps=5, variance="learned_range", clip=1.0)
    x = sampler.sample(SHAPE, dtype=dtype)
    assert x.dtype == dtype
    torch.testing.assert_close(x.double(), sampler.sample(SHAPE, dtype=torch.float64), rtol=0.1, atol=0.1)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"DDPMSampler: variance must be one of fixed_small, .*, got 'learned'"):
        DDPMSampler(VPSDE(), Network(), variance="learned")
    with pytest.raises(ValueError, match=r"with twice the channels of its input, \(2, 6, 4, 4\) .* got \(2, 3, 4, 4\)"):
        DDPMSampler(VPSDE(), Network(), steps=3, variance="learned_range").sample(SHAPE)
    with pytest.raises(ValueError, match=r"must return a tensor like its input, \(2, 3, 4, 4\) .* got \(2, 6, 4, 4\)"):
        DDPMSampler(VPSDE(), network("learned_range"), steps=3).sample(SHAPE)


@pytest.fixture(scope="module")
def diffusers():
    try:
        import diffusers
    except ImportError as error:
        pytest.fail(f"diffusers is missing, pip install diffusers: {error}")
    return diffusers


LIVE = {
    "default": {},
    "fixed_large": {"variance_type": "fixed_large", "clip_sample": False},
    "learned_range": {"variance_type": "learned_range", "clip_sample_range": 0.7},
    "linspace, v": {"timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    "scaled linear": {"beta_schedule": "scaled_linear", "clip_sample": False},
    "cosine, clean image": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    "thresholding": {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1e3},
}


@pytest.mark.parametrize("steps", [20, 33])
@pytest.mark.parametrize("name", LIVE)
def test_equals_diffusers(diffusers, name, steps):
    """In float64, with noise of the same generator."""
    scheduler = diffusers.DDPMScheduler(**LIVE[name])
    scheduler.alphas_cumprod, scheduler.one = scheduler.alphas_cumprod.double(), torch.ones(()).double()
    scheduler.set_timesteps(steps)
    config = scheduler.config
    sde = DiscreteVPSDE.from_alphas_cumprod(scheduler.alphas_cumprod, min_log_snr=None)
    prediction = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}[config.prediction_type]
    model = AnalyticModel(mixture_2d(), lambda label: sde.marginal((label + 1) / 1000), prediction)
    if config.variance_type == "learned_range":
        model = WithVariance(model)
    x = latent = torch.randn(50, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(50)), t, x, generator=generator).prev_sample
    sampler = DDPMSampler(
        sde,
        model,
        steps=steps,
        spacing=config.timestep_spacing,
        variance=config.variance_type,
        clip=config.clip_sample_range if config.clip_sample and not config.thresholding else None,
        convention=Convention(prediction, "timestep"),
    )
    assert [s.label for s in sampler.plan().steps] == scheduler.timesteps.tolist()
    hooks = [DynamicThresholding(0.9)] if config.thresholding else []
    assert_equal(sampler.sample(latent, noise=TorchNoise(torch.Generator().manual_seed(1)), hooks=hooks), x)

"""DDIM and its inverse as their user meets them: parity with the reference, options, errors, and diffusers live."""

import itertools

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DDIMInverseSampler, DDIMSampler, DDPMSampler, DiscreteVPSDE, SubVPSDE
from fastscore.noise import PhiloxNoise, TorchNoise
from fastscore.reference.samplers import ddim_inverse_sampler, ddim_sampler
from fastscore.samplers import DynamicThresholding, Hook
from fastscore.testing.statistics import AnalyticModel, RecordingModel, mixture_2d

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear()}
SHAPE = (2, 3, 4, 4)
PREDICTIONS = ("score", "noise", "denoised", "v", "edm")
OPTIONS = {
    "ode": {},
    "to eps": {"denoise": False},
    "eta": {"eta": 0.4},
    "eta, clip, to eps": {"eta": 0.7, "clip": 0.8, "denoise": False},
    "ancestral": {"eta": 1.0, "clip": 1.5},
    "sigma_hat": {"eta": "sigma_hat"},
    "sigma_hat to eps": {"eta": "sigma_hat", "denoise": False, "clip": 1.0},
    "network's noise": {"eta": 0.3, "clip": 0.8, "clipped_noise": False},
    "network's noise, no clip": {"clipped_noise": False},
}


class Network(RecordingModel):
    """Smooth, and of no particular meaning."""

    def evaluate(self, x, label):
        return torch.tanh(x * 0.7) - 0.1 * x + label.reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


class Watching(Hook):
    """Has the clean image formed, and leaves it."""

    def on_denoised(self, denoised, x, moment):
        self.seen = denoised
        return None


def state(sde, shape=SHAPE, seed=5):
    return sde.prior_sample(shape, noise=PhiloxNoise(seed), dtype=torch.float64)


def path_of(sampler):
    """Times of the network calls, and of the end, None for the clean image."""
    return {"times": [s.t for s in sampler.plan().steps], "end": None if sampler.denoise else sampler.eps}


def assert_equal(x, expected):
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde_name", SDES)
def test_equals_the_literal_reference(sde_name, prediction, options):
    """In float64, with and without hooks that do nothing, on both backends."""
    sde = SDES[sde_name]
    spacing = "quad" if sde_name == "discrete" else "log_snr"
    convention = Convention(prediction, "log_sigma")
    sampler = DDIMSampler(sde, Network(), steps=7, spacing=spacing, convention=convention, **options)
    given = {key: value for key, value in options.items() if key != "denoise"}
    x = state(sde)
    expected = ddim_sampler(sde, Network(), x, PhiloxNoise(5), convention, **path_of(sampler), **given)
    for backend, hooks in itertools.product(("cpu", "reference"), ([], [Watching()])):
        with fastscore.backend(backend):
            assert_equal(sampler.sample(x, seed=5, hooks=hooks), expected)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde_name", SDES)
def test_inverse_equals_the_literal_reference(sde_name, prediction, clip):
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    sampler = DDIMInverseSampler(sde, Network(), steps=7, convention=convention, clip=clip)
    x = 0.5 * state(VPSDE())
    times = [*(step.t for step in sampler.plan().steps), 1.0]
    assert times == sorted(times)
    expected = ddim_inverse_sampler(sde, Network(), x, convention, times=times, clip=clip)
    for backend, hooks in itertools.product(("cpu", "reference"), ([], [Watching()])):
        with fastscore.backend(backend):
            assert_equal(sampler.sample(x, hooks=hooks), expected)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("sde_name", SDES)
def test_any_number_of_steps(sde_name, steps, denoise):
    """Also few, and fewer than a VP chain needs."""
    for eta in (0.0, 1.0, "sigma_hat"):
        sampler = DDIMSampler(SDES[sde_name], Network(), steps=steps, eta=eta, denoise=denoise)
        model = sampler.model
        x, info = sampler.sample(SHAPE, return_info=True)
        assert torch.isfinite(x).all()
        assert info.nfe == model.calls == steps


def test_one_clean_step_is_the_clean_image():
    hook = Watching()
    x = DDIMSampler(VPSDE(), Network(), steps=1).sample(SHAPE, hooks=[hook])
    torch.testing.assert_close(x, hook.seen)


@pytest.mark.parametrize("sde_name", SDES)
@pytest.mark.parametrize(("eta", "variance"), [(1.0, "fixed_small"), ("sigma_hat", "fixed_large")])
@pytest.mark.parametrize("denoise", [True, False])
def test_eta_one_is_ancestral_sampling(sde_name, eta, variance, denoise):
    sde, options = SDES[sde_name], {"steps": 9, "clip": 0.9, "denoise": denoise}
    ddim = DDIMSampler(sde, Network(), eta=eta, **options)
    ddpm = DDPMSampler(sde, Network(), variance=variance, **options)
    x = state(sde)
    assert_equal(ddim.sample(x, seed=1), ddpm.sample(x, seed=1))


def test_encoding_takes_images():
    sampler = DDIMInverseSampler(SDES["discrete"], Network(), steps=4)
    with pytest.raises(TypeError, match=r"DDIMInverseSampler: images must be a tensor of shape \(B, ...\), got tuple"):
        sampler.sample(SHAPE)
    images = torch.rand(SHAPE)
    before = images.clone()
    assert sampler.sample(images).dtype == torch.float32
    assert torch.equal(images, before)
    with pytest.raises(ValueError, match=r"spacing='leading' must visit more than the first level"):
        DDIMInverseSampler(SDES["discrete"], Network(), steps=1, spacing="leading")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must lie in \[0, 1\] or be 'sigma_hat', got 1.5"),
        ({"eta": -0.1}, r"eta must lie in \[0, 1\]"),
        ({"eta": float("nan")}, r"eta must lie in \[0, 1\] or be 'sigma_hat', got nan"),
        ({"eta": "sigma"}, r"eta must lie in \[0, 1\] or be 'sigma_hat', got 'sigma'"),
        ({"clip": 0.0}, r"clip must be a positive number or None, got 0.0"),
    ],
)
def test_bad_construction(options, message):
    with pytest.raises(ValueError, match=rf"DDIMSampler: {message}"):
        DDIMSampler(SDES["vp"], Network(), **options)


@pytest.fixture(scope="module")
def diffusers():
    try:
        import diffusers
    except ImportError as error:
        pytest.fail(f"diffusers is missing, pip install diffusers: {error}")
    return diffusers


# Spacings under which DDIMScheduler's t - N // steps is the next timestep.
LIVE = {
    "default": ({}, {}),
    "leading": ({"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}, {"eta": 0.0}),
    "trailing": ({"timestep_spacing": "trailing", "clip_sample": False}, {"eta": 0.6}),
    "eta, clip": ({"clip_sample_range": 0.7}, {"eta": 1.0}),
    "clipped noise": ({"clip_sample_range": 0.5}, {"eta": 0.4, "use_clipped_model_output": True}),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, {}),
    "scaled linear, v": (
        {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": False},
        {"eta": 0.2},
    ),
    "clean image": ({"prediction_type": "sample"}, {}),
    "no signal at first": (
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"eta": 0.5},
    ),
    "thresholding": ({"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1e3}, {"eta": 0.5}),
}


@pytest.mark.parametrize("name", LIVE)
def test_equals_diffusers(diffusers, name):
    """In float64, with noise of the same generator."""
    config, step = LIVE[name]
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.ones(()).double() if scheduler.config.set_alpha_to_one else None
    if scheduler.final_alpha_cumprod is None:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(20)
    sde = DiscreteVPSDE.from_alphas_cumprod(scheduler.alphas_cumprod, min_log_snr=None)
    prediction = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}[scheduler.config.prediction_type]
    model = AnalyticModel(mixture_2d(), lambda label: sde.marginal((label + 1) / 1000), prediction)
    x = latent = torch.randn(50, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(50)), t, x, generator=generator, **step).prev_sample
    thresholding = scheduler.config.thresholding
    sampler = DDIMSampler(
        sde,
        model,
        steps=20,
        spacing=scheduler.config.timestep_spacing,
        offset=scheduler.config.steps_offset,
        eta=step.get("eta", 0.0),
        clipped_noise=step.get("use_clipped_model_output", False),
        denoise=scheduler.config.set_alpha_to_one,
        clip=scheduler.config.clip_sample_range if scheduler.config.clip_sample and not thresholding else None,
        convention=Convention(prediction, "timestep"),
    )
    assert [s.label for s in sampler.plan().steps] == scheduler.timesteps.tolist()
    hooks = [DynamicThresholding(0.9)] if thresholding else []
    assert_equal(sampler.sample(latent, noise=TorchNoise(torch.Generator().manual_seed(1)), hooks=hooks), x)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_timesteps_of_diffusers(diffusers, spacing):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    for steps in (1, 2, 3, 7, 15, 20, 48, 50, 80, 96, 333, 999, 1000):
        scheduler.set_timesteps(steps)
        plan = DDIMSampler(SDES["discrete"], Network(), steps=steps, spacing=spacing).plan()
        assert [step.label for step in plan.steps] == scheduler.timesteps.tolist(), steps

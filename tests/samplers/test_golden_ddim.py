"""DDIM and DDPM runs of ermongroup/ddim, diffusers and guided-diffusion, replayed with their noise."""

import itertools
import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import Convention, DDIMInverseSampler, DDIMSampler, DDPMSampler, DiscreteVPSDE
from fastscore.noise import ReplayNoise
from fastscore.reference.samplers import ddim_sampler, ddpm_sampler
from fastscore.samplers import Hook
from fastscore.testing.golden import golden_cond_fn, golden_model, load_cases, load_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
MIXTURE = load_mixture(FOLDER)
CASES = {
    case.id: case
    for case in [
        *load_cases(FOLDER, "ddim"),
        *load_cases(FOLDER, "diffusers", "df.DDIM."),
        *load_cases(FOLDER, "diffusers", "df.DDPM."),
        *load_cases(FOLDER, "guided"),
    ]
}

# DDIMScheduler goes from timestep t to t - N // steps, which is the next timestep only where the spacing is "leading",
# or steps divides N and it is "trailing": the network is then told another level than the one the state is at.
BROKEN_GRID = [
    "df.DDIM.s10.timestep_spacinglinspace.clip_sampleFalse",
    "df.DDIM.s20.timestep_spacinglinspace.clip_sampleFalse",
    "df.DDIM.s15.rescale_betas_zero_snrTrue.timestep_spacingtrailing.prediction_typev_prediction.clip_sampleFalse",
]
# Ends with a step to alpha_bar = 0, beyond the last level.
REVERSE = ["gd.ddim_reverse.r20", "gd.ddim_reverse.r20.noclip"]
GUIDED = [
    "gd.p_sample_loop.linear.N1000.r20.learned_range.eps.cond",
    "gd.ddim_sample_loop.linear.N1000.rddim25.fixed_small.eps.eta0.cond",
]
WHOLE = [id for id in CASES if id not in {*BROKEN_GRID, *REVERSE, *GUIDED}]


def first_half(model):
    """A network with learned variances for a sampler that does not use them."""
    return lambda x, label: model(x, label).chunk(2, 1)[0]


def setting(case):
    """Sampler class, SDE, network, options, the state it starts from, and the noise of its steps."""
    model = golden_model(case, MIXTURE)
    model.record = True
    sde = DiscreteVPSDE.from_betas(case.tensors["betas"].double(), min_log_snr=None)
    noise = list(case.tensors.get("noise", []))
    args = case.args
    if case.id.startswith("ddim."):
        options = {"steps": args["timesteps"], "spacing": args["skip_type"]}
        if "ddpm_steps" in case.function:
            options |= {"variance": "fixed_large", "clip": 1.0}
            return DDPMSampler, sde, model, options, case.tensors["x"], noise
        return DDIMSampler, sde, model, options | {"eta": args["eta"]}, case.tensors["x"], noise
    if case.id.startswith("df."):
        config, step = args["config"], args["step_kwargs"]
        prediction = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v"}
        options = {
            "steps": args["num_inference_steps"],
            "spacing": config.get("timestep_spacing", "leading"),
            "offset": config.get("steps_offset", 0),
            "clip": 1.0 if config.get("clip_sample", True) else None,
            "convention": Convention(prediction[config.get("prediction_type", "epsilon")], "timestep"),
        }
        if "DDPM" in case.id:
            options["variance"] = config.get("variance_type", "fixed_small")
            return DDPMSampler, sde, model, options, case.tensors["x_init"], noise
        options |= {"eta": step.get("eta", 0.0), "denoise": config.get("set_alpha_to_one", True)}
        options["clipped_noise"] = step.get("use_clipped_model_output", False)
        return DDIMSampler, sde, model, options, case.tensors["x_init"], noise
    prediction = {"EPSILON": "noise", "START_X": "denoised"}[args["model_mean_type"]]
    scales = round(sde.num_timesteps * args["label_scale"])
    options = {
        "spacing": args["timestep_respacing"] or str(sde.num_timesteps),
        "clip": 1.0 if args["clip_denoised"] else None,
        "convention": Convention(prediction, "timestep", scales),
    }
    if "p_sample_loop" in case.function:
        options["variance"] = args["model_var_type"]
        return DDPMSampler, sde, model, options, noise[0], noise[1:]
    if args["model_var_type"] == "learned_range":
        record, model = model, first_half(model)
        model.labels, model.inputs = record.labels, record.inputs
    if "reverse" in case.function:
        return DDIMInverseSampler, sde, model, options, case.tensors["x"], []
    return DDIMSampler, sde, model, options | {"eta": args["eta"]}, noise[0], noise[1:]


def assert_golden(case, x, model):
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    labels = torch.stack([label[0].double() for label in model.labels])
    expected = case.tensors["call_labels"].double().reshape(len(labels), -1)[:, 0]
    torch.testing.assert_close(labels, expected, rtol=1e-6, atol=1e-5)


def test_every_case_is_one_of_these():
    assert len(CASES) == 10 + 14 + 3 + 16
    assert sorted([*WHOLE, *BROKEN_GRID, *REVERSE, *GUIDED]) == sorted(CASES)


@pytest.mark.parametrize("id", WHOLE)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_sampler_equals_published(id, backend):
    case = CASES[id]
    sampler, sde, model, options, x, noise = setting(case)
    with fastscore.backend(backend):
        result, info = sampler(sde, model, **options).sample(x, noise=ReplayNoise(noise), return_info=True)
    assert info.nfe == case.scalars["model_calls"]
    assert_golden(case, result, model)
    states, (sampler, sde, model, options, *_) = dict(model.inputs), setting(case)
    assert len(states) == sum(name.startswith("call_x_") for name in case.tensors)
    sampler(sde, model, **options).sample(x.double(), noise=ReplayNoise([z.double() for z in noise]))
    for call, state in states.items():  # as for results: 1e-5, or three times the rounding noise of the state itself
        expected = case.tensors[f"call_x_{call}"]
        rounding = float((state - model.inputs[call]).abs().max())
        tolerance = max(1e-5 * max(1.0, float(expected.abs().max())), 3 * rounding)
        assert float((state - expected).abs().max()) <= tolerance, f"state at call {call}"


@pytest.mark.parametrize("id", WHOLE)
def test_literal_reference_equals_published(id):
    case = CASES[id]
    sampler, sde, model, options, x, noise = setting(case)
    plan = sampler(sde, model, **options)
    options.pop("spacing")
    end = None if options.pop("denoise", True) else plan.eps
    for name in ("steps", "offset", "convention"):
        options.pop(name, None)
    reference = {DDIMSampler: ddim_sampler, DDPMSampler: ddpm_sampler}[sampler]
    times = [step.t for step in plan.plan().steps]
    result = reference(sde, model, x, ReplayNoise(noise), plan.convention, times=times, end=end, **options)
    assert_golden(case, result, model)


@pytest.mark.parametrize("id", BROKEN_GRID)
def test_every_published_step_of_a_broken_grid(id):
    """Each step by itself is DDIM's, from t to t - N // steps; see `BROKEN_GRID`."""
    case = CASES[id]
    _, sde, model, options, x, _ = setting(case)
    timesteps = case.tensors["timesteps"].tolist()
    stride = sde.num_timesteps // options["steps"]
    assert any(t - stride != after for t, after in itertools.pairwise(timesteps))
    chosen = DDIMSampler(sde, model, **options).plan()  # our own grid visits the same timesteps
    assert [step.label for step in chosen.steps] == timesteps
    for t, after in zip(timesteps, case.tensors["prev_samples"], strict=True):
        visited = torch.tensor([t] if t < stride else [t, t - stride])
        states = []
        sampler = DDIMSampler(sde, model, **(options | {"spacing": visited, "steps": None}))
        sampler.sample(x, callback=lambda i, step, state, states=states: states.append(state))
        assert float((states[0] - after).abs().max()) <= case.tolerance, t
        x = after


@pytest.mark.parametrize("id", REVERSE)
def test_published_encoding(id):
    """Up to the last level; the published code goes on to alpha_bar = 0, where the noise alone is left."""
    case = CASES[id]
    sampler, sde, model, options, x, _ = setting(case)
    sampler = sampler(sde, model, **options)
    latent = sampler.sample(x)
    last = torch.full((len(x),), float(sde.num_timesteps - 1))
    noise = model(latent, last)
    alpha, sigma = (float(c) for c in sde.marginal(1.0))
    if sampler.clip is not None:
        clean = ((latent - sigma * noise) / alpha).clamp(-sampler.clip, sampler.clip)
        noise = (latent - alpha * clean) / sigma
    assert_golden(case, noise, model)


class MeanShift(Hook):
    """Guidance of ancestral sampling: the mean is moved by variance * gradient (arXiv 2105.05233, algorithm 1)."""

    def __init__(self, case, sde, model):
        self.gradient, self.y, self.model = golden_cond_fn(case, MIXTURE), case.tensors["y"], model
        alpha_bar = sde.alpha(sde.times(case.tensors["timestep_map"])).square()
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        betas = 1 - alpha_bar / before
        self.large = betas
        small = betas * (1 - before) / (1 - alpha_bar)
        self.small = torch.cat([small[1:2], small[1:]])  # as published: that of the first step is of the second

    def before_step(self, x, moment):
        self.x = x.clone()

    def after_step(self, x, moment):
        step = len(self.large) - 1 - moment.index
        v = (self.model.last.chunk(2, 1)[1] + 1) / 2
        variance = torch.exp(v * math.log(self.large[step]) + (1 - v) * math.log(self.small[step]))
        return x + variance * self.gradient(self.x, self.model.labels[-1], self.y)


class ScoreShift(Hook):
    """Guidance of the score (arXiv 2105.05233, algorithm 2), seen from the clean image."""

    def __init__(self, case, sde, model):
        self.gradient, self.y, self.model = golden_cond_fn(case, MIXTURE), case.tensors["y"], model

    def on_denoised(self, denoised, x, moment):
        alpha, sigma = (float(c[0]) for c in moment.sde.marginal(moment.t))
        return denoised + sigma**2 / alpha * self.gradient(x, self.model.labels[-1], self.y)


@pytest.mark.parametrize(("id", "hook"), [(GUIDED[0], MeanShift), (GUIDED[1], ScoreShift)])
def test_guidance_is_a_hook(id, hook):
    case = CASES[id]
    sampler, sde, model, options, x, noise = setting(case)

    def network(x, label):
        model.last = model(x, label)
        return model.last

    hooks = [hook(case, sde, model)]
    result = sampler(sde, network, **options).sample(x, noise=ReplayNoise(noise), hooks=hooks)
    assert_golden(case, result, model)

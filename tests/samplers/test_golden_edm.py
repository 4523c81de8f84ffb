"""Published runs in the noise level, replayed with their noise: samplers of EDM, k-diffusion, diffusers and the
consistency models, and the variance-preserving schedule of EDM's ablation as an ODE in time."""

import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, EDMSampler, EulerAncestralSampler, ODESampler, PCSampler
from fastscore.noise import ReplayNoise
from fastscore.reference.samplers import edm_sampler, euler_ancestral_sampler, ode_sampler, spaced_times
from fastscore.testing.golden import golden_model, load_cases, load_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
MIXTURE = load_mixture(FOLDER)
DENOISER = Convention("denoised", "sigma")
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def chosen(manifest, *prefixes):
    return [case for prefix in prefixes for case in load_cases(FOLDER, manifest, prefix)]


def levels_as_times(sigmas):
    """A VESDE and its times at falling levels; a last level of 0 is left out."""
    sigmas = sigmas[sigmas > 0].double()
    sde = VESDE(float(sigmas[-1]), float(sigmas[0]))
    return sde, sde.inverse_log_snr(-2 * sigmas.log())


def karras(args, steps, sigma_min=0.002, sigma_max=80.0):
    sde = VESDE(args.get("sigma_min", sigma_min), args.get("sigma_max", sigma_max))
    return sde, spaced_times(sde, "karras", steps, 0.0, args.get("rho", 7.0))


def network(case):
    model = golden_model(case, MIXTURE)
    model.record = True
    return model


def assert_golden(case, x, model, labels=True):
    """The end, the number of calls, every label and every recorded state on the way."""
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    assert model.calls == case.scalars["model_calls"]
    assert set(model.inputs) == set(model.keep)
    for i, seen in model.inputs.items():
        recorded = case.tensors[f"call_x_{i}"]
        assert (seen - recorded).abs().max() <= case.tolerance * max(1.0, float(recorded.abs().max()))
    if labels:
        given = torch.stack([label[0].double() for label in model.labels])
        torch.testing.assert_close(given, case.tensors["call_labels"].double(), rtol=2e-6, atol=2e-6)


def assert_states(case, states, heun=False):
    """The states after every step; Heun's list has the points between them, too, but none in the last step."""
    path = case.tensors["prev_samples"]
    for ours, recorded in zip(states, torch.cat([path[1::2], path[-1:]]) if heun else path, strict=True):
        assert (ours - recorded).abs().max() <= case.tolerance * max(1.0, float(recorded.abs().max()))


# EDM


def named_as_published(args):
    return {name.lower(): args[name] for name in ("S_churn", "S_min", "S_max", "S_noise") if name in args}


def edm_setting(case):
    """SDE, times and options of a case in the noise level; None for what works in another variable."""
    args = case.args
    if args.get("schedule", "linear") != "linear":
        return None
    options = named_as_published(args) | {"order": 1 if args.get("solver") == "euler" else 2}
    if args.get("discretization") == "iddpm":
        return *levels_as_times(case.tensors["call_labels"][::2]), options
    sigma_min = max(0.002, args["net_sigma_min"])
    sigma_max = min(80.0, float(args["net_sigma_max"]))
    return *karras(args, args["num_steps"], sigma_min, sigma_max), options


EDM = [case for case in load_cases(FOLDER, "edm") if edm_setting(case)]


@pytest.mark.parametrize("case", EDM, ids=str)
@BACKENDS
def test_edm(case, backend):
    sde, times, options = edm_setting(case)
    model = network(case)
    x = case.tensors["latents"].double() * float(sde.sigma(times[0]))
    noise = churn_noise(case, sde.sigma(times), len(times), options)
    sampler = EDMSampler(sde, model, steps=len(times), spacing=times, convention=DENOISER, **options)
    with fastscore.backend(backend):
        x, info = sampler.sample(x, noise=ReplayNoise(noise), return_info=True)
    assert info.nfe == case.scalars["model_calls"]
    assert_golden(case, x, model)


@pytest.mark.parametrize("case", EDM, ids=str)
def test_reference_of_edm(case):
    sde, times, options = edm_setting(case)
    model = network(case)
    noise = ReplayNoise(churn_noise(case, sde.sigma(times), len(times), options))
    x = case.tensors["latents"].double() * float(sde.sigma(times[0]))
    assert_golden(case, edm_sampler(sde, model, x, noise, DENOISER, times, **options), model)


def churn_noise(case, sigmas, steps, options):
    """The recorded draws that have a weight: published code draws at every step."""
    if "noise" not in case.tensors:
        return []
    low, high = options.get("s_min", 0.0), options.get("s_max", math.inf)
    used = [options.get("s_churn", 0.0) > 0 and low <= float(sigma) <= high for sigma in sigmas]
    return [z for z, use in zip(case.tensors["noise"][-steps:], used, strict=True) if use]


VP_ABLATION = "edm.ablation.num_steps12.solverheun.discretizationvp.schedulevp.scalingvp"


class ScaledDenoiser(torch.nn.Module):
    """A denoiser of x / alpha, given x."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, sigma):
        alpha = (1 + sigma.double() ** 2).rsqrt().reshape(-1, 1, 1, 1)
        return self.model(x / alpha, sigma)


def vp_ablation():
    (case,) = (case for case in load_cases(FOLDER, "edm", VP_ABLATION) if "alpha" not in case.args)
    times = torch.cat([torch.linspace(1.0, 1e-3, 12, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    return case, VPSDE(0.1, 20.0), times, network(case)


@BACKENDS
def test_heun_in_time_is_the_variance_preserving_ablation_of_edm(backend):
    case, sde, times, model = vp_ablation()
    sampler = ODESampler(sde, ScaledDenoiser(model), steps=12, method="heun", spacing=times, convention=DENOISER)
    with fastscore.backend(backend):
        x = sampler.sample(case.tensors["latents"].double() * float(sde.sigma(1.0)))
    assert_golden(case, x, model)


def test_reference_of_the_variance_preserving_ablation_of_edm():
    case, sde, times, model = vp_ablation()
    x = case.tensors["latents"].double() * float(sde.sigma(1.0))
    assert_golden(case, ode_sampler(sde, ScaledDenoiser(model), x, DENOISER, times, "heun"), model)


def test_what_is_left_of_edm():
    """Heun's method in the variable sigma^2, and a second-order method other than Heun's in the time of VP."""
    replayed = {case.id for case in EDM} | {vp_ablation()[0].id}
    left = {case.id for case in load_cases(FOLDER, "edm")} - replayed
    assert left == {
        "edm.ablation.num_steps12.solverheun.discretizationve.scheduleve.scalingnone",
        f"{VP_ABLATION}.alpha0.7",
    }


# k-diffusion

K = chosen("k", "k.euler", "k.heun", "k.dpm_2")
DPM_2 = {"alpha": 0.5, "stage_rho": math.inf}
SOLVERS = {
    "euler": (EDMSampler, edm_sampler, {"order": 1}),
    "heun": (EDMSampler, edm_sampler, {}),
    "dpm_2": (EDMSampler, edm_sampler, DPM_2),
    "euler_ancestral": (EulerAncestralSampler, euler_ancestral_sampler, {}),
    "dpm_2_ancestral": (EulerAncestralSampler, euler_ancestral_sampler, {"order": 2}),
}


def k_setting(case):
    """Sampler, reference, SDE, times, options and noise."""
    cls, reference, options = SOLVERS[case.function.rpartition("sample_")[2]]
    names = {"s_churn": "s_churn", "s_tmin": "s_min", "s_tmax": "s_max", "s_noise": "s_noise", "eta": "eta"}
    options = options | {ours: case.args[theirs] for theirs, ours in names.items() if theirs in case.args}
    sde, times = levels_as_times(case.tensors["sigmas"])
    if cls is EDMSampler:
        return cls, reference, sde, times, options, churn_noise(case, sde.sigma(times), len(times), options)
    return cls, reference, sde, times, options, list(case.tensors["noise"])


@pytest.mark.parametrize("case", K, ids=str)
@BACKENDS
def test_k_diffusion(case, backend):
    cls, _, sde, times, options, noise = k_setting(case)
    model = network(case)
    sampler = cls(sde, model, steps=len(times), spacing=times, convention=DENOISER, **options)
    with fastscore.backend(backend):
        assert_golden(case, sampler.sample(case.tensors["x"], noise=ReplayNoise(noise)), model)


@pytest.mark.parametrize("case", K, ids=str)
def test_reference_of_k_diffusion(case):
    _, reference, sde, times, options, noise = k_setting(case)
    model = network(case)
    x = reference(sde, model, case.tensors["x"], ReplayNoise(noise), DENOISER, times, **options)
    assert_golden(case, x, model)


# diffusers: x / alpha lies at levels read off its table at fractional timesteps, so both are taken from the case


class AtTimesteps(torch.nn.Module):
    """A network of (alpha x, timestep), given (x, sigma)."""

    def __init__(self, model, sigmas, timesteps):
        super().__init__()
        self.model, self.sigmas, self.timesteps = model, sigmas.double(), timesteps.double()

    def forward(self, x, sigma):
        nearest = (self.sigmas.log() - sigma.double()[:, None].log()).abs().argmin(1)
        alpha = (1 + sigma.double() ** 2).rsqrt().reshape(-1, 1, 1, 1)
        return self.model((x * alpha).to(x.dtype), self.timesteps[nearest])


DIFFUSERS = chosen("diffusers", "df.EulerDiscrete", "df.HeunDiscrete", "df.EulerAncestralDiscrete")


@pytest.mark.parametrize("case", DIFFUSERS, ids=str)
def test_diffusers(case):
    model, heun = network(case), "Heun" in case.id
    sigmas, timesteps = case.tensors["sigmas"][:-1], case.tensors["timesteps"]
    if heun:  # it lists every level but the first twice
        sigmas, timesteps = (torch.cat([values[:1], values[1::2]]) for values in (sigmas, timesteps))
    sde, times = levels_as_times(sigmas)
    options = {"steps": len(times), "spacing": times, "convention": Convention("noise", "sigma")}
    wrapped, states = AtTimesteps(model, sigmas, timesteps), []
    if "Ancestral" in case.id:
        sampler = EulerAncestralSampler(sde, wrapped, **options)
    else:
        sampler = EDMSampler(sde, wrapped, order=2 if heun else 1, **options)
    noise = ReplayNoise(list(case.tensors.get("noise", ())))
    x = sampler.sample(case.tensors["x_init"], noise=noise, callback=lambda i, step, x: states.append((step, x)))
    assert_golden(case, x, model)
    assert_states(case, [x for step, x in states if not step.stage], heun)


VE_DIFFUSERS = chosen("diffusers", "df.ScoreSdeVe")


@pytest.mark.parametrize("case", VE_DIFFUSERS, ids=str)
@pytest.mark.parametrize("denoise", [False, True])
def test_predictor_corrector_of_diffusers(case, denoise):
    """Its scheduler for VE is the published predictor-corrector sampler."""
    config, n = case.args["config"], case.args["num_inference_steps"]
    model, corrector_steps, states = network(case), config.get("correct_steps", 1), []
    sampler = PCSampler(
        VESDE(0.01, config.get("sigma_max", 1348.0)),
        model,
        snr=config.get("snr", 0.15),
        steps=n,
        corrector_steps=corrector_steps,
        eps=config.get("sampling_eps", 1e-5),
        denoise=denoise,
    )
    x = sampler.sample(
        (2, 3, 8, 8),
        noise=ReplayNoise(list(case.tensors["noise"])),
        callback=lambda i, step, x: states.append(x) if step.name == "reverse_diffusion" else None,
    )
    error = float((x - case.tensors["result_mean" if denoise else "result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    assert model.calls == case.scalars["model_calls"]
    if not denoise:
        assert_states(case, states)
    labels = torch.stack([label[0] for label in model.labels]).double()
    expected = case.tensors["sigmas"].double().repeat_interleave(corrector_steps + 1)
    torch.testing.assert_close(labels, expected, rtol=2e-6, atol=0.0)


# consistency_models: a preconditioned network whose label is 1000 log(sigma) / 4


class Thousandfold(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, label):
        return self.model(x, 1000 * label)


CM = [
    case
    for case in load_cases(FOLDER, "cm", "cm.karras_sample.")
    if case.args["sampler"] in ("euler", "heun", "dpm", "ancestral", "progdist")
]


@pytest.mark.parametrize("case", CM, ids=str)
@BACKENDS
def test_consistency_models(case, backend):
    args, model = case.args, network(case)
    options = {
        "euler": {"order": 1},
        "heun": {},
        "dpm": {"alpha": 0.5, "stage_rho": 3.0},
        "ancestral": {},
        "progdist": {"order": 1, "denoise": False},
    }[args["sampler"]]
    options |= {name: args[name] for name in ("s_churn", "s_noise") if name in args}
    steps = args["steps"]
    sde, times = karras(args, steps + (args["sampler"] == "progdist"))
    start, *noise = case.tensors["noise"]
    if args["sampler"] != "ancestral" and "s_churn" not in args:
        noise = []
    sampler = (EulerAncestralSampler if args["sampler"] == "ancestral" else EDMSampler)(
        sde,
        Thousandfold(model),
        steps=steps,
        spacing=times,
        clip=1.0,
        convention=Convention("edm", "log_sigma", sigma_data=args["sigma_data"]),
        **options,
    )
    with fastscore.backend(backend):
        x = sampler.sample(args["sigma_max"] * start, noise=ReplayNoise(noise))
    assert_golden(case, x.clamp(-1, 1), model)


def test_every_recorded_case_has_its_place():
    counted = {
        "edm": len(EDM) + 1,
        "k": len(K),
        "diffusers": len(DIFFUSERS) + len(VE_DIFFUSERS),
        "cm": len(CM),
    }
    assert counted == {"edm": 10, "k": 18, "diffusers": 13, "cm": 6}
    assert {case.function for case in K} == {f"k_diffusion.sampling.sample_{name}" for name in SOLVERS}

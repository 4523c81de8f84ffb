"""DPM-Solver as three published implementations run it: recorded runs replayed, and their packages beside ours."""

import math
from pathlib import Path

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, DPMSolverSampler
from fastscore.noise import PhiloxNoise, ReplayNoise
from fastscore.reference.samplers import dpm_solver_sampler
from fastscore.samplers import DynamicThresholding
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.peers import k_diffusion_sampling
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
MIXTURE = load_mixture(FOLDER)
DPM = [case for case in load_cases(FOLDER, "dpm") if case.args["method"] != "adaptive"]
DIFFUSERS = [
    case
    for case in load_cases(FOLDER, "diffusers", "df.DPMSolver")
    if not case.args["config"].get("algorithm_type", "").startswith("sde-")
]
# Its second inner point comes from the midpoint rule; that of the paper (and of its code) from the Taylor expansion.
OTHER_INNER_POINT = "df.DPMSolverSinglestep.s12.solver_order3"
K_DIFFUSION = load_cases(FOLDER, "k", "k.dpmpp_2m.") + load_cases(FOLDER, "k", "k.dpm_fast")
SPACINGS = {"time_uniform": "linear", "logSNR": "log_snr", "time_quadratic": "quadratic"}


def published_dpm_solver(case):
    """SDE, convention and arguments of a run of LuChengTHU/dpm-solver."""
    args, schedule = case.args, case.args["noise_schedule"]
    prediction = {"x_start": "denoised"}.get(args["model_type"], args["model_type"])
    if schedule["schedule"] == "linear":
        sde, convention = VPSDE(schedule["continuous_beta_0"], schedule["continuous_beta_1"]), Convention(prediction)
    else:
        sde = DiscreteVPSDE.from_betas(case.tensors["betas"])
        assert sde.num_timesteps == schedule["total_N"]
        convention = Convention(prediction, "timestep", 1000)
    options = {name: args[name] for name in ("steps", "order", "method", "denoise_to_zero")}
    options |= {
        "algorithm": args["algorithm_type"],
        "solver_type": {"dpmsolver": "midpoint"}.get(args["solver_type"], args["solver_type"]),
        "spacing": SPACINGS[args["skip_type"]],
        # documented for fewer than 15 steps, applied for fewer than 10
        "lower_order_final": args["lower_order_final"] and args["steps"] < 10,
        "eps": args["t_end"] or sde.sampling_eps,
    }
    if "inverse" in case.function:
        options["spacing"] = torch.linspace(options["eps"], 1, args["steps"] + 1, dtype=torch.float64)
    return sde, convention, options


def times_of(sde, convention, labels):
    return labels if convention.label == "time" else labels / 1000 + 1 / sde.num_timesteps


def assert_labels(case, sde, convention, end, labels):
    """The recorded labels up to what single precision left of the published grid; the largest shift in log-SNR / 2.

    Grids even in lambda = log(alpha / sigma) start from 1 - alpha^2 at the end, in float32.
    """
    given = torch.stack([label[0].double() for label in labels])
    expected = case.tensors["call_labels"].double().reshape(len(given), -1)[:, 0]
    if case.args["skip_type"] != "logSNR":
        torch.testing.assert_close(given, expected, rtol=0, atol=2e-7 * float(expected.max()))
        return 0.0
    shift = [0.5 * sde.log_snr(times_of(sde, convention, values)) for values in (given, expected)]
    error, bound = float((shift[0] - shift[1]).abs().max()), 2.0**-25 / float(sde.sigma(end)) ** 2
    print(f"labels: {error:.1e} of {bound:.1e}")
    assert error <= bound
    return error


def assert_golden(case, x):
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance


@pytest.mark.parametrize("case", DPM, ids=str)
def test_sampler_equals_dpm_solver(case):
    sde, convention, options = published_dpm_solver(case)
    model = golden_model(case, MIXTURE)
    model.record = True
    sampler = DPMSolverSampler(sde, model, convention=convention, **options)
    hooks = [DynamicThresholding()] if case.args["correcting_x0_fn"] else []
    x, info = sampler.sample(case.tensors["x_T"], hooks=hooks, return_info=True)
    assert info.nfe == case.scalars["model_calls"] == model.calls
    assert_golden(case, x)
    shift = assert_labels(case, sde, convention, options["eps"], model.labels)
    for i, point in model.inputs.items():
        recorded = case.tensors[f"call_x_{i}"]
        # a state of VP moves by at most its own size per unit of lambda
        largest = float(recorded.abs().max())
        assert float((point - recorded).abs().max()) <= max(case.tolerance, 1e-5 * largest) + shift * largest


@pytest.mark.parametrize("case", [case for case in DPM if not case.args["correcting_x0_fn"]], ids=str)
def test_literal_reference_equals_dpm_solver(case):
    sde, convention, options = published_dpm_solver(case)
    model, x = golden_model(case, MIXTURE), case.tensors["x_T"]
    assert_golden(case, dpm_solver_sampler(sde, model, x, PhiloxNoise(0), convention, **options))
    assert model.calls == case.scalars["model_calls"]


def published_diffusers(case):
    """The same for diffusers: schedules of float32, sigmas at integer timesteps, an end without noise by default."""
    config, steps = case.args["config"], case.args["num_inference_steps"]
    sde = DiscreteVPSDE.from_betas(case.tensors["betas"])
    prediction = {"epsilon": "noise", "v_prediction": "v"}[config.get("prediction_type", "epsilon")]
    singlestep = "Singlestep" in case.id
    options = {
        "steps": steps,
        "order": config.get("solver_order", 2),
        "method": "singlestep" if singlestep else "multistep",
        "algorithm": config.get("algorithm_type", "dpmsolver++"),
        "solver_type": {"heun": "taylor"}.get(config.get("solver_type"), "midpoint"),
        "lower_order_final": config.get("lower_order_final", True),
        "denoise": config.get("final_sigmas_type", "zero") == "zero",
        "eps": 1 / sde.num_timesteps,
    }
    if config.get("use_karras_sigmas") or config.get("use_lu_lambdas"):  # from ends in float32, tested below
        sigmas = case.tensors["sigmas"][:-1].double()
        options["spacing"] = sde.inverse_log_snr(-2 * sigmas.log()).clamp(max=1)
    else:
        options["spacing"] = sde.times(case.tensors["timesteps"])
        if not options["denoise"]:
            options["spacing"] = torch.cat([options["spacing"], sde.times([0])])
    return sde, Convention(prediction, "rounded_timestep"), options


@pytest.mark.parametrize("case", [case for case in DIFFUSERS if case.id != OTHER_INNER_POINT], ids=str)
def test_sampler_equals_diffusers(case):
    sde, convention, options = published_diffusers(case)
    model, states = golden_model(case, MIXTURE), []
    model.record = True
    sampler = DPMSolverSampler(sde, model, convention=convention, **options)
    x = sampler.sample(case.tensors["x_init"], callback=lambda i, step, x: states.append((step.stage, x)))
    labels = torch.stack([label[0] for label in model.labels])
    assert torch.equal(labels, case.tensors["call_labels"].reshape(len(labels), -1)[:, 0].long())
    assert_golden(case, x)
    for (stage, x), recorded in zip(states, case.tensors["prev_samples"], strict=True):
        if not stage:
            assert float((x - recorded).abs().max()) <= max(case.tolerance, 1e-5 * float(recorded.abs().max()))


def test_the_case_of_diffusers_that_is_left_out():
    """It looks at the same times and comes near, and is another method of order 3."""
    case = next(case for case in DIFFUSERS if case.id == OTHER_INNER_POINT)
    sde, convention, options = published_diffusers(case)
    model = golden_model(case, MIXTURE)
    model.record = True
    x = DPMSolverSampler(sde, model, convention=convention, **options).sample(case.tensors["x_init"])
    labels = torch.stack([label[0] for label in model.labels])
    assert torch.equal(labels, case.tensors["call_labels"].reshape(len(labels), -1)[:, 0].long())
    error = float((x - case.tensors["result"]).abs().max())
    print(error)
    assert 10 * case.tolerance < error < 100 * case.tolerance


@pytest.mark.parametrize(("name", "spacing"), [("use_karras_sigmas", "karras"), ("use_lu_lambdas", "log_snr")])
def test_named_spacings_are_those_of_diffusers(name, spacing):
    """Up to its sigmas, whose smallest comes from 1 - alpha^2 in float32."""
    for case in (case for case in DIFFUSERS if case.args["config"].get(name)):
        sde, _, options = published_diffusers(case)
        sampler = DPMSolverSampler(sde, golden_model(case, MIXTURE), **options | {"spacing": spacing})
        times = torch.tensor([step.t for step in sampler.plan().steps], dtype=torch.float64)
        sigmas = torch.exp(-0.5 * sde.log_snr(times))
        bound = 2.0**-25 / float(sde.sigma(options["eps"])) ** 2
        torch.testing.assert_close(sigmas, case.tensors["sigmas"][:-1].double(), rtol=bound, atol=0)


@pytest.mark.parametrize("case", K_DIFFUSION, ids=str)
def test_sampler_equals_k_diffusion(case):
    args = case.args
    sde = VESDE(args["sigma_min"] / 2, args["sigma_max"])
    noise = None
    options = {"steps": args["steps"], "eps": float(sde.inverse_log_snr(-2 * math.log(args["sigma_min"])))}
    if "dpm_fast" in case.function:
        options |= {"order": 3, "method": "singlestep", "algorithm": "dpmsolver", "eta": args.get("eta", 0.0)}
        noise = ReplayNoise(list(case.tensors["noise"])) if options["eta"] else None
    else:
        options |= {"lower_order_final": False, "denoise": True, "spacing": "karras"}
        if args["sigma_schedule"] != "karras" or args["dtype"] == "float64":
            sigmas = case.tensors["sigmas"][:-1].double()
            options["spacing"] = sde.inverse_log_snr(-2 * sigmas.log()).clamp(max=1)
    model = golden_model(case, MIXTURE)
    model.record = True
    sampler = DPMSolverSampler(sde, model, convention=Convention("denoised", "sigma"), **options)
    x = sampler.sample(case.tensors["x"], noise=noise)
    assert_golden(case, x)
    labels = torch.stack([label[0] for label in model.labels]).double()
    torch.testing.assert_close(labels, case.tensors["call_labels"].double().flatten(), rtol=3e-6, atol=0)
    for i, point in model.inputs.items():
        recorded = case.tensors[f"call_x_{i}"]
        assert float((point - recorded).abs().max()) <= max(case.tolerance, 1e-5 * float(recorded.abs().max()))


@pytest.fixture(scope="module")
def diffusers():
    import diffusers  # a failure, not a skip, where it is missing: pip install fastscore[test]

    return diffusers


@pytest.fixture(scope="module")
def k_diffusion():
    return k_diffusion_sampling()


def chain_model(prediction):
    """The exact network of a 2-D mixture for the linear schedule, told the index of a level."""
    sde = DiscreteVPSDE.linear()
    return sde, AnalyticModel(mixture_2d(), lambda label: sde.marginal((label + 1) / 1000), prediction)


ENDS = [("dpmsolver++", "zero"), ("dpmsolver++", "sigma_min"), ("dpmsolver", "sigma_min")]


def run_diffusers(scheduler, model, latent, steps):
    scheduler.set_timesteps(steps)
    x = latent
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x)).to(x.dtype)), t, x).prev_sample
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(
    ("algorithm", "final"), [("dpmsolver++", "zero"), ("dpmsolver++", "sigma_min"), ("dpmsolver", "sigma_min")]
)
@pytest.mark.parametrize("steps", [7, 18])
def test_beside_diffusers_multistep(diffusers, steps, algorithm, final, solver_type, order):
    if (order, solver_type) == (3, "heun"):  # diffusers has one multistep method of order 3, the published one
        solver_type = "midpoint"
    sde, model = chain_model("noise")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, solver_type=solver_type, algorithm_type=algorithm, final_sigmas_type=final
    )
    latent = torch.randn(4, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = run_diffusers(scheduler, model, latent, steps)
    sigmas = scheduler.sigmas.double()  # float32, the last of them 3e-4 beside that of the schedule
    sampler = DPMSolverSampler(
        sde,
        model,
        steps=steps,
        order=order,
        algorithm=algorithm,
        solver_type="midpoint" if solver_type == "midpoint" else "taylor",
        spacing=sde.inverse_log_snr(-2 * sigmas[sigmas > 0].log()).clamp(max=1),
        denoise=final == "zero",
    )
    torch.testing.assert_close(sampler.sample(latent), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 9, 16])
@pytest.mark.parametrize("order", [1, 2])
def test_beside_diffusers_singlestep(diffusers, order, steps):
    sde, model = chain_model("denoised")
    scheduler = diffusers.DPMSolverSinglestepScheduler(solver_order=order, prediction_type="sample")
    latent = torch.randn(4, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = run_diffusers(scheduler, model, latent, steps)
    sampler = DPMSolverSampler(
        sde,
        model,
        steps=steps,
        order=order,
        method="singlestep",
        spacing=sde.times(scheduler.timesteps),
        denoise=True,
        convention=Convention("denoised", "timestep"),
    )
    torch.testing.assert_close(sampler.sample(latent), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 14])
def test_beside_k_diffusion_dpmpp_2m(k_diffusion, steps):
    sde = VESDE(0.01, 10.0)
    model = AnalyticModel(mixture_2d(), ve_perturbation, "denoised")
    latent = 10 * torch.randn(4, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end = 0.1  # of t
    options = {"convention": Convention("denoised", "sigma"), "eps": end, "denoise": True, "lower_order_final": False}
    sampler = DPMSolverSampler(sde, model, steps=steps, spacing="karras", **options)
    times = torch.tensor([step.t for step in sampler.plan().steps], dtype=torch.float64)
    sigmas = torch.cat([sde.sigma(times), times.new_zeros(1)])
    expected = k_diffusion.sample_dpmpp_2m(model, latent, sigmas, disable=True)
    torch.testing.assert_close(sampler.sample(latent), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("steps", [4, 6, 8, 13])
def test_beside_k_diffusion_dpm_fast(k_diffusion, steps, eta):
    """It needs at least 4 calls, and its draws come at every step, whether they have a weight or not."""
    sde = VESDE(0.01, 10.0)
    model = AnalyticModel(mixture_2d(), ve_perturbation, "denoised")
    draws = torch.randn(8, 4, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    latent, left = 10 * draws[0], iter(draws[1:])
    expected = k_diffusion.sample_dpm_fast(
        model, latent, float(sde.sigma(0.1)), 10.0, steps, disable=True, eta=eta, noise_sampler=lambda *_: next(left)
    )
    options = {"order": 3, "method": "singlestep", "algorithm": "dpmsolver", "eta": eta, "eps": 0.1}
    sampler = DPMSolverSampler(sde, model, steps=steps, convention=Convention("denoised", "sigma"), **options)
    x = sampler.sample(latent, noise=ReplayNoise(list(draws[1:])))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)  # its ends are float32

"""SDE-DPM-Solver: parity with the reference, recorded and live published runs, laws, cost, errors."""

import itertools
import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import (
    VESDE,
    VPSDE,
    Convention,
    DiscreteVPSDE,
    DPMSolverSampler,
    SDEDPMSolver2SSampler,
    SDEDPMSolverSampler,
    SubVPSDE,
)
from fastscore.noise import PhiloxNoise, ReplayNoise
from fastscore.reference.samplers import sde_dpm_solver_2s_sampler, sde_dpm_solver_sampler, spaced_times
from fastscore.reference.samplers._network import denoised
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import Held, Smooth, Watching, assert_reads_nothing_between_steps
from fastscore.testing.peers import k_diffusion_sampling
from fastscore.testing.statistics import AnalyticModel, assert_same_law, mixture_2d, ve_perturbation, vp_perturbation
from fastscore.testing.traffic import traffic_per_step

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(50, 1e-3, 0.2)}
REFERENCES = {SDEDPMSolverSampler: sde_dpm_solver_sampler, SDEDPMSolver2SSampler: sde_dpm_solver_2s_sampler}
STAGE_NOISES = ("path", "independent", "none")
SOLVERS = {
    **{f"{a} {o} {t}": (SDEDPMSolverSampler, {"algorithm": a, "order": o, "solver_type": t})
       for a, o, t in itertools.product(("dpmsolver++", "dpmsolver"), (1, 2, 3), ("midpoint", "heun", "taylor"))},
    **{f"2S {noise}": (SDEDPMSolver2SSampler, {"stage_noise": noise}) for noise in STAGE_NOISES},
}  # fmt: skip
SHAPE = (2, 3, 4, 4)
LARGE = (2, 3, 16, 16)  # larger than any table of coefficients, which traffic must not count
FOLDER = Path(__file__).parents[1] / "golden" / "samplers"


def assert_equals_reference(
    cls, sde, options, *, steps, spacing="karras", clean=True, convention=None, clip=None, **run
):
    times = spaced_times(sde, spacing, steps + 1 - clean, 0.02)
    sampler = cls(
        sde,
        Smooth(),
        steps=steps,
        eps=0.02,
        spacing=spacing,
        denoise=clean,
        convention=convention,
        clip=clip,
        **options,
    )
    noise = PhiloxNoise(5)
    start = sde.prior_sample(SHAPE, noise=noise, dtype=torch.float64)
    x = sampler.sample(start, seed=5, **run)
    model, convention = Smooth(), sampler.convention
    if clip is not None:

        def model(x, t):
            return denoised(sde, Smooth(), x, float(t[0]), sampler.convention).clamp(-clip, clip)

        convention = Convention("denoised", "time")
    expected = REFERENCES[cls](sde, model, start, noise, convention, times, denoise=clean, **options)
    error = float((x - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error < 1e-10, f"{error:.1e}"
    return sampler


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_equals_the_literal_reference(solver, sde, clean):
    """In float64, so that only a wrong formula can differ."""
    cls, options = SOLVERS[solver]
    for noise in ({}, {"eta": 0.6, "s_noise": 1.1}, {"eta": 0.0}, {"s_noise": 0.0}):
        assert_equals_reference(cls, SDES[sde], options | noise, steps=7, clean=clean)
    other = {"r": 0.3} if cls is SDEDPMSolver2SSampler else {"lower_order_final": False}
    assert_equals_reference(cls, SDES[sde], options | other, steps=7, clean=clean)
    assert_equals_reference(cls, SDES[sde], options, steps=15, spacing="linear", clean=clean)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("solver", ["dpmsolver++ 3 heun", "dpmsolver 3 heun", "2S path"])
def test_every_prediction_with_hook_and_clip(solver, prediction, backend):
    cls, options = SOLVERS[solver]
    convention = Convention(prediction, "time")
    with fastscore.backend(backend):
        for sde in SDES.values():
            assert_equals_reference(cls, sde, options, steps=5, convention=convention)
            assert_equals_reference(cls, sde, options, steps=5, convention=convention, hooks=[Watching()])
            assert_equals_reference(cls, sde, options, steps=5, convention=convention, clip=0.4)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("solver", ["dpmsolver++ 3 heun", "dpmsolver 3 taylor", "2S path", "2S none"])
def test_few_steps_are_safe(solver, sde):
    cls, options = SOLVERS[solver]
    for steps, clean in itertools.product((1, 2, 3), (True, False)):
        sampler = assert_equals_reference(cls, SDES[sde], options, steps=steps, clean=clean)
        assert sampler.plan().nfe == (steps if cls is SDEDPMSolverSampler else 2 * steps - clean)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "taylor"])
def test_without_noise_it_is_dpm_solver(sde, algorithm, order, solver_type):
    shared = {"steps": 16, "order": order, "algorithm": algorithm, "solver_type": solver_type, "spacing": "karras"}
    with_rate = SDEDPMSolverSampler(SDES[sde], Smooth(), eta=0.0, **shared)
    without = DPMSolverSampler(SDES[sde], Smooth(), denoise=True, **shared)
    x, y = (sampler.sample(SHAPE, seed=3, dtype=torch.float64) for sampler in (with_rate, without))
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------------ published runs

DIFFUSERS = [
    case
    for case in load_cases(FOLDER, "diffusers", "df.DPMSolverMultistep")
    if case.args["config"].get("algorithm_type", "").startswith("sde-")
]
K_DIFFUSION = [
    case
    for name in ("dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "dpmpp_2s_ancestral")
    for case in load_cases(FOLDER, "k", f"k.{name}.")
]
THIRD_ORDER = "df.DPMSolverMultistep.s20.solver_order3.algorithm_typesde-dpmsolver++"
K_OPTIONS = {
    "dpmpp_2m_sde": {"lower_order_final": False},
    "dpmpp_3m_sde": {"order": 3, "solver_type": "heun", "lower_order_final": False},
    "dpmpp_sde": {"stage_noise": "independent"},
    "dpmpp_2s_ancestral": {"stage_noise": "none"},
}


def published(case):
    """Class, SDE, times, arguments and convention of a recorded run."""
    args, n = case.args, len(case.tensors["sigmas"]) - 1
    if case in K_DIFFUSION:
        options = K_OPTIONS[case.id.split(".")[1]] | {
            k: args[k] for k in ("eta", "s_noise", "solver_type") if k in args
        }
        sde = VESDE(1e-3, 80.0)
        times = sde.inverse_log_snr(-2 * case.tensors["sigmas"][:-1].double().log())
        cls = SDEDPMSolver2SSampler if "stage_noise" in options else SDEDPMSolverSampler
        return cls, sde, times, options | {"steps": n, "denoise": True}, Convention("denoised", "sigma")
    config = args["config"]
    sde = DiscreteVPSDE.from_betas(case.tensors["betas"], min_log_snr=None)
    to_noise = config.get("final_sigmas_type") == "sigma_min"
    times = sde.times([*case.tensors["timesteps"].tolist(), *[0] * to_noise])
    options = {
        "steps": n,
        "order": config["solver_order"],
        "algorithm": config["algorithm_type"].removeprefix("sde-"),
        "solver_type": config.get("solver_type", "midpoint"),
        "denoise": not to_noise,
    }
    return SDEDPMSolverSampler, sde, times, options, Convention("noise", "timestep")


def without_the_half(plan, path):
    """The plan with the published third-order step: (1 - e^-H - H) / H^2 - 1/2 in place of + 1/2, H = 2 h."""
    rows = list(plan.steps)
    for i, row in enumerate(rows):
        if row.ages == (0, 1, 2):
            log_ratios = [path[i - k].log_ratio for k in (-1, 0, 1, 2)]
            h, h0, h1 = (later - earlier for later, earlier in itertools.pairwise(log_ratios))
            r0, r1 = h0 / h, h1 / h
            second = [1 / r0, -1 / r0 - 1 / r1, 1 / r1]
            a, *b, s = row.coefficients
            b = [value - path[i + 1].alpha * d / (r0 + r1) for value, d in zip(b, second, strict=True)]
            rows[i] = type(row)(**vars(row) | {"coefficients": (a, *b, s)})
    return type(plan)(tuple(rows))


def replay(case, backend):
    """The largest error of the sampler, with the noise and at the labels of the recorded run."""
    cls, sde, times, options, convention = published(case)
    model = golden_model(case, load_mixture(FOLDER))
    model.record = True
    sampler = cls(sde, model, spacing=times, convention=convention, **options)
    if case.id == THIRD_ORDER:
        sampler._plans[False] = without_the_half(sampler.plan(), sampler._path)
    states = []
    latent = case.tensors["x" if case in K_DIFFUSION else "x_init"]
    with fastscore.backend(backend):
        x = sampler.sample(
            latent, noise=ReplayNoise(list(case.tensors["noise"])), callback=lambda i, step, x: states.append(x)
        )
    assert model.calls == case.scalars["model_calls"]
    labels = torch.stack([label[0].double() for label in model.labels])
    torch.testing.assert_close(labels, case.tensors["call_labels"].double(), rtol=2e-6, atol=2e-5)
    if case not in K_DIFFUSION:
        # half way up the states are up to ten times as large as the result
        largest = case.tensors["prev_samples"].abs().amax(dim=(1, 2, 3, 4)).clamp(min=1)
        errors = (torch.stack(states) - case.tensors["prev_samples"]).abs().amax(dim=(1, 2, 3, 4)) / largest
        assert float(errors.max()) <= 2e-5
    return float((x - case.tensors["result"]).abs().max())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", DIFFUSERS + K_DIFFUSION, ids=str)
def test_recorded_runs(case, backend):
    """diffusers' third-order SDE step has a wrong sign: with the sign changed back its numbers come out."""
    error = replay(case, backend)
    print(f"{case.id}: {error:.1e} of {case.tolerance:.1e}")
    assert error <= case.tolerance


@pytest.mark.parametrize("case", DIFFUSERS + K_DIFFUSION, ids=str)
def test_recorded_runs_by_the_reference(case):
    cls, sde, times, options, convention = published(case)
    model, noise = golden_model(case, load_mixture(FOLDER)), list(case.tensors["noise"])
    if options.get("stage_noise") == "none":  # whose draws have even numbers
        noise = [z for end in noise for z in (torch.full_like(end, math.nan), end)]
    latent = case.tensors["x" if case in K_DIFFUSION else "x_init"]
    steps = options.pop("steps")
    assert len(times) == steps + (not options["denoise"])
    x = REFERENCES[cls](sde, model, latent, Numbered(noise), convention, times, **options)
    error = float((x - case.tensors["result"]).abs().max())
    if case.id == THIRD_ORDER:
        assert error > 0.1  # the published sign
    else:
        assert error <= case.tolerance


class Numbered(ReplayNoise):
    """A recording that is asked by number, from 1."""

    def normal(self, shape, *, dtype=torch.float32, device=None, draw=0):
        self.position = draw - 1
        return super().normal(shape, dtype=dtype, device=device, draw=draw)


K_NAMES = [
    ("dpmpp_2m_sde", {"eta": 0.7, "s_noise": 1.1}, {}),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, {"solver_type": "heun"}),
    ("dpmpp_3m_sde", {"eta": 0.7}, {}),
    ("dpmpp_sde", {"r": 0.4, "eta": 0.8}, {"r": 0.4}),
    ("dpmpp_2s_ancestral", {"eta": 0.8, "s_noise": 1.1}, {}),
]


@pytest.mark.parametrize(("name", "theirs", "ours"), K_NAMES)
def test_equals_k_diffusion(name, theirs, ours):
    model = AnalyticModel(mixture_2d(), ve_perturbation, "denoised")
    generator = torch.Generator().manual_seed(1)
    noise = list(torch.randn(40, 4, *mixture_2d().shape, dtype=torch.float64, generator=generator))
    sde, n = VESDE(0.01, 10.0), 14
    times = spaced_times(sde, "karras", n, 0.1)
    latent = 10 * torch.randn(4, *mixture_2d().shape, dtype=torch.float64, generator=generator)
    sigmas = torch.cat([sde.sigma(times), torch.zeros(1, dtype=torch.float64)])
    draws = iter(noise)
    expected = getattr(k_diffusion_sampling(), f"sample_{name}")(
        model, latent, sigmas, noise_sampler=lambda *_: next(draws), disable=True, **theirs
    )
    options = K_OPTIONS[name] | ours | {k: theirs[k] for k in ("eta", "s_noise") if k in theirs}
    cls = SDEDPMSolver2SSampler if "stage_noise" in options else SDEDPMSolverSampler
    sampler = cls(sde, model, steps=n, eps=0.1, convention=Convention("denoised", "sigma"), **options)
    x = sampler.sample(latent, noise=ReplayNoise(noise))
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_equals_diffusers(order, solver_type):
    """In float32, which their steps insist on."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=solver_type
    )
    scheduler.set_timesteps(12)
    betas = scheduler.betas.double()
    log_alphas = 0.5 * torch.log1p(-betas).cumsum(0)

    def perturb(label):
        log_alpha = log_alphas[label.long()]
        return log_alpha.exp(), torch.expm1(2 * log_alpha).neg().sqrt()

    model = AnalyticModel(mixture_2d(), perturb, "noise")
    generator = torch.Generator().manual_seed(2)
    noise = list(torch.randn(12, 4, *mixture_2d().shape, generator=generator))
    x = latent = torch.randn(4, *mixture_2d().shape, generator=generator)
    for t, z in zip(scheduler.timesteps, noise, strict=True):
        x = scheduler.step(model(x, t.expand(4)), t, x, variance_noise=z).prev_sample
    sde = DiscreteVPSDE.from_betas(betas, min_log_snr=None)
    times = sde.times(scheduler.timesteps.tolist())
    sampler = SDEDPMSolverSampler(sde, model, steps=12, order=order, solver_type=solver_type, spacing=times)
    ours = sampler.sample(latent, noise=ReplayNoise(noise))
    if order == 3:
        assert float((ours - x).abs().max()) > 1e-2  # the sign, see above
        sampler._plans[False] = without_the_half(sampler.plan(), sampler._path)
        ours = sampler.sample(latent, noise=ReplayNoise(noise))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=2e-5)


# ------------------------------------------------------------------------------------------------ laws

LAWS = {
    "++ 1": (SDEDPMSolverSampler, {"order": 1}, 500),
    "++ 2": (SDEDPMSolverSampler, {"order": 2}, 150),
    "++ 2, half the noise": (SDEDPMSolverSampler, {"order": 2, "eta": 0.5}, 150),
    "++ 3": (SDEDPMSolverSampler, {"order": 3, "solver_type": "taylor"}, 150),
    "noise 2": (SDEDPMSolverSampler, {"order": 2, "algorithm": "dpmsolver"}, 400),
    "2S path": (SDEDPMSolver2SSampler, {}, 100),
    "2S independent": (SDEDPMSolver2SSampler, {"stage_noise": "independent"}, 400),
    "2S none": (SDEDPMSolver2SSampler, {"stage_noise": "none"}, 100),
}


@pytest.mark.no_poison
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_reaches_the_law(law, sde):
    cls, options, steps = LAWS[law]
    data = mixture_2d()
    model = AnalyticModel(
        data, ve_perturbation if sde == "ve" else vp_perturbation(), "score" if sde == "ve" else "noise"
    )
    sampler = cls(SDES[sde], model, steps=steps, spacing="log_snr", **options)
    assert_same_law(sampler.sample((2000, *data.shape), seed=4), data, f"{sde} {law}")


# ------------------------------------------------------------------------------------------------ cost and errors


def cost_of_a_step(cls, **options):
    samplers = {n: cls(VPSDE(), Held(LARGE), steps=n, **options) for n in (20, 24)}
    return traffic_per_step(lambda n: samplers[n].sample(LARGE, seed=0), torch.empty(LARGE), (20, 24))


@pytest.mark.parametrize("prediction", ["noise", "denoised", "v"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_a_multistep_step_moves_the_least_it_can(algorithm, order, prediction):
    """State, output, order - 1 older predictions; the state and, where it is used again, a prediction are written."""
    convention = Convention(prediction, "time")
    count = cost_of_a_step(SDEDPMSolverSampler, order=order, algorithm=algorithm, convention=convention)
    assert 0 < count.moved <= (4 if order == 1 else 3 + order), count.by_op
    assert count.full == 1, count.by_op
    assert count.calls <= 5, count.by_op


@pytest.mark.parametrize("stage_noise", STAGE_NOISES)
def test_a_two_stage_step_is_two_kernels(stage_noise):
    count = cost_of_a_step(SDEDPMSolver2SSampler, stage_noise=stage_noise, r=0.4)
    assert count.full == 2, count.by_op
    assert 0 < count.moved <= 8, count.by_op
    assert count.calls <= 10, count.by_op


@pytest.mark.parametrize("solver", ["dpmsolver++ 3 heun", "dpmsolver 2 midpoint", "2S path"])
def test_no_host_synchronization_between_steps(solver):
    cls, options = SOLVERS[solver]

    def make(model):
        return cls(VPSDE(), model, steps=12, **options)

    assert_reads_nothing_between_steps(make, LARGE, make(Held(LARGE)).plan().nfe)


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (SDEDPMSolverSampler, {"order": 4}, ValueError, "SDEDPMSolverSampler: order must be 1, 2 or 3, got 4"),
        (SDEDPMSolverSampler, {"order": 0}, ValueError, "order must be at least 1, got 0"),
        (SDEDPMSolverSampler, {"order": 2.0}, TypeError, "order must be an integer, got 2.0"),
        (SDEDPMSolverSampler, {"algorithm": "unipc"}, ValueError, r"algorithm must be one of .* got 'unipc'"),
        (SDEDPMSolverSampler, {"solver_type": "rk"}, ValueError, "solver_type must be one of midpoint, heun, taylor"),
        (SDEDPMSolverSampler, {"eta": -1}, ValueError, "eta must be a finite number at least 0, got -1"),
        (SDEDPMSolverSampler, {"s_noise": math.nan}, ValueError, "s_noise must be a finite number at least 0, got nan"),
        (SDEDPMSolverSampler, {"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        (SDEDPMSolverSampler, {"spacing": torch.linspace(1, 0.1, 9)}, ValueError, "must fall strictly and have shape"),
        (
            SDEDPMSolver2SSampler,
            {"eta": 1.1},
            ValueError,
            "eta must be a finite number at least 0 and at most 1, got 1.1",
        ),
        (SDEDPMSolver2SSampler, {"r": 0.0}, ValueError, r"r must be a finite number above 0 and below 1, got 0.0"),
        (SDEDPMSolver2SSampler, {"stage_noise": True}, ValueError, "stage_noise must be one of path, .* got True"),
        (SDEDPMSolver2SSampler, {"s_noise": -0.5}, ValueError, "s_noise must be a finite number at least 0, got -0.5"),
    ],
)
def test_bad_construction(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(VPSDE(), Smooth(), **{"steps": 6} | options)

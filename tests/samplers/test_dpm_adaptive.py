"""Adaptive DPM-Solver: the literal reference, recorded runs of dpm-solver and k-diffusion, k-diffusion live, cost."""

import itertools
import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, DPMSolverAdaptive, SubVPSDE
from fastscore.noise import PhiloxNoise
from fastscore.reference.samplers import dpm_solver_adaptive
from fastscore.samplers import Hook, PIDController
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.statistics import AnalyticModel, CountingModel, mixture_2d, ve_perturbation, vp_perturbation
from fastscore.testing.traffic import traffic_per_step

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
DPM = [case for case in load_cases(FOLDER, "dpm") if case.args["method"] == "adaptive"]
K = load_cases(FOLDER, "k", "k.dpm_adaptive")
SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(200, 5e-4, 0.1)}
DATA = mixture_2d()
ALGORITHMS = ("dpmsolver", "dpmsolver++")


def exact_network(name):
    if name == "ve":
        return AnalyticModel(DATA, ve_perturbation, "score")
    return AnalyticModel(DATA, vp_perturbation(subvp=name == "subvp"), "noise")


def smooth(x, label):
    return torch.tanh(x * 0.7) - 0.1 * x + label.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", SDES)
def test_equals_the_literal_reference(name, order, algorithm, prediction):
    sde, convention = SDES[name], Convention(prediction, "log_sigma")
    start = sde.prior_sample((3, 2, 4, 4), noise=PhiloxNoise(1), dtype=torch.float64)
    for norm in ("sample", "max", "batch"):
        options = {"order": order, "algorithm": algorithm, "norm": norm, "eps": 0.01, "denoise": True, "h_init": 0.1}
        model = CountingModel(smooth)
        x, info = DPMSolverAdaptive(sde, model, convention=convention, **options).sample(start, return_info=True)
        expected, counts = dpm_solver_adaptive(sde, smooth, start, convention, **options)
        assert list(zip(info.accepted.tolist(), info.rejected.tolist(), strict=True)) == counts
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        assert info.nfe.tolist() == [order * a + (order - 1) * r + 1 for a, r in counts]
        assert model.samples == int(info.nfe.sum())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("order", [2, 3])
def test_backends_and_a_hook_that_does_nothing_change_nothing(backend, order):
    class Nothing(Hook):
        def on_denoised(self, denoised, x, moment):
            return None

    start = SDES["vp"].prior_sample((4, *DATA.shape), noise=PhiloxNoise(2), dtype=torch.float64)
    sampler = DPMSolverAdaptive(SDES["vp"], exact_network("vp"), order=order)
    expected = sampler.sample(start)
    with fastscore.backend(backend):
        for hooks in ([], [Nothing()]):
            torch.testing.assert_close(sampler.sample(start, hooks=hooks), expected, rtol=1e-8, atol=1e-8)


def setting(case):
    schedule = case.args["noise_schedule"]
    if schedule["schedule"] == "linear":
        sde = VPSDE(schedule["continuous_beta_0"], schedule["continuous_beta_1"])
        return sde, Convention("noise", "time"), 1e-3
    return DiscreteVPSDE.from_betas(case.tensors["betas"].double()), Convention("noise", "timestep", 1000), 1 / 1000


def published(case, dtype):
    sde, convention, eps = setting(case)
    args, model = case.args, golden_model(case, load_mixture(FOLDER))
    model.record = True
    sampler = DPMSolverAdaptive(
        sde,
        model,
        order=args["order"],
        algorithm=args["algorithm_type"],
        rtol=args["rtol"],
        atol=args["atol"],
        norm="max",
        eps=eps,
        denoise=args["denoise_to_zero"],
        convention=convention,
    )
    trials = []
    x, info = sampler.sample(
        case.tensors["x_T"].to(dtype), return_info=True, callback=lambda i, trial, x: trials.append(trial)
    )
    return x, info, trials, model


@pytest.mark.parametrize("case", DPM, ids=str)
def test_dpm_solver_takes_the_published_steps(case):
    """Order 2 in float32. Order 3 in float64: its first step's error is pure rounding, which then chooses the second.

    The published code calls the network anew after a rejection.
    """
    dtype = torch.float32 if case.args["order"] == 2 else torch.float64
    x, info, trials, model = published(case, dtype)
    calls = int(info.nfe[0] + info.rejected[0])
    assert model.calls == int(info.nfe[0])
    other = case.scalars.get("float64_run_model_calls")  # where the published code in float64 takes other steps, too
    assert calls == (other or case.scalars["model_calls"])
    if other:
        assert_within_its_tolerance(case, x)
        return
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {calls} calls, {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance
    if case.args["order"] == 2:  # rounding moves the points a little, more so than the end
        expected = iter(case.tensors["call_labels"].double().tolist())
        seen = iter(label[0].item() for label in model.labels)
        first, rejected = 0.0, False
        for trial in trials:
            first = first if rejected else next(seen)
            assert next(expected) == pytest.approx(first, rel=2e-3)
            assert next(expected) == pytest.approx(next(seen), rel=2e-3)
            rejected = not bool(trial.accepted[0])


def assert_within_its_tolerance(case, x):
    """Runs of different steps end apart; to the exact end neither may be farther off than rtol (values are near 1)."""
    sde, convention, eps = setting(case)
    # the other algorithm with short steps; they are smooth in lambda, where a discrete schedule is not in t
    other = {"dpmsolver": "dpmsolver++", "dpmsolver++": "dpmsolver"}[case.args["algorithm_type"]]
    sampler = DPMSolverAdaptive(
        sde, golden_model(case, load_mixture(FOLDER)), algorithm=other, rtol=1e-5, atol=1e-5, eps=eps,
        convention=convention, denoise=case.args["denoise_to_zero"],
    )  # fmt: skip
    exact = sampler.sample(case.tensors["x_T"].double())
    ours, theirs = (float((y - exact).abs().max()) for y in (x, case.tensors["result"]))
    print(f"{case.id}: off by {ours:.2e}, the published run by {theirs:.2e}")
    assert max(ours, theirs) <= case.args["rtol"]


def test_every_recorded_run_is_replayed():
    assert len(DPM) == 16
    assert sum("float64_run_model_calls" in case.scalars for case in DPM) == 4
    # eta > 0 adds noise to each step of an ODE solver; the adaptive solver of the SDE here is AdaptiveSDESampler
    assert [case.id for case in K if "eta" in case.args] == ["k.dpm_adaptive.karras.order2.eta0.7"]


@pytest.mark.parametrize("case", [case for case in K if "eta" not in case.args], ids=str)
def test_k_diffusion_takes_the_published_steps(case):
    args = case.args
    sde, model = VESDE(args["sigma_min"], args["sigma_max"]), golden_model(case, load_mixture(FOLDER))
    sampler = DPMSolverAdaptive(
        sde,
        model,
        order=args["order"],
        rtol=args.get("rtol", 0.05),
        atol=args.get("atol", 0.0078),
        controller=PIDController(**{name: args[name] for name in ("pcoeff", "icoeff", "dcoeff") if name in args}),
        norm="batch",
        eps=1e-12,  # sigma_min itself
        t_err=1e-6,
        convention=Convention("denoised", "sigma"),
    )
    x, info = sampler.sample(case.tensors["x"], return_info=True)
    assert int(info.accepted[0]) == case.scalars["n_accept"]
    assert int(info.rejected[0]) == case.scalars["n_reject"]
    assert int(info.nfe[0] + info.rejected[0]) == case.scalars["nfe"]
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance


@pytest.fixture
def k_sampling():
    from fastscore.testing.peers import k_diffusion_sampling

    return k_diffusion_sampling()


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("coefficients", [(0.0, 1.0, 0.0), (0.3, 0.4, 0.2), (0.2, 0.7, 0.0)], ids=str)
def test_equals_k_diffusion(k_sampling, order, coefficients):
    sde, model = VESDE(0.01, 20.0), AnalyticModel(DATA, ve_perturbation, "denoised")
    start = sde.prior_sample((3, *DATA.shape), noise=PhiloxNoise(3), dtype=torch.float64)
    names = ("pcoeff", "icoeff", "dcoeff")
    options = dict(zip(names, coefficients, strict=True))
    x, info = DPMSolverAdaptive(
        sde, model, order=order, rtol=0.01, atol=1e-3, controller=PIDController(**options), norm="batch", eps=1e-12,
        h_init=0.5, convention=Convention("denoised", "sigma"),
    ).sample(start, return_info=True)  # fmt: skip
    expected, theirs = k_sampling.sample_dpm_adaptive(
        model,
        start,
        0.01,
        20.0,
        order=order,
        rtol=0.01,
        atol=1e-3,
        h_init=0.5,
        disable=True,
        return_info=True,
        **options,
    )
    assert int(info.accepted[0]) == theirs["n_accept"]
    assert int(info.rejected[0]) == theirs["n_reject"]
    # the peer's tolerances are float32; lengths of steps carry such differences on
    assert float((x - expected).abs().max()) < 2e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_the_error_falls_with_the_tolerance(name, order, algorithm):
    """In proportion to it, and the calls grow with at most its root of the order."""
    sde, model = SDES[name], exact_network(name)
    start = sde.prior_sample((8, *DATA.shape), noise=PhiloxNoise(4), dtype=torch.float64)
    exact = fastscore.RK45Sampler(sde, model, rtol=1e-9, atol=1e-9).sample(start)
    errors, calls = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        sampler = DPMSolverAdaptive(sde, model, order=order, algorithm=algorithm, rtol=tolerance, atol=tolerance)
        x, info = sampler.sample(start, return_info=True)
        errors.append(float((x - exact).square().mean().sqrt()))
        calls.append(float(info.nfe.double().mean()))
    growth = math.log(calls[-1] / calls[0], 100)
    print(f"{name} {order} {algorithm}: errors {errors}, calls {calls}, growth {growth:.2f}")
    assert errors[0] < 0.02
    for a, b in itertools.pairwise(errors):
        assert 3 < a / b < 60
    assert 0.2 < growth < 1 / order + 0.05


class Outputs(torch.nn.Module):
    """A network that costs nothing: one of the tensors it holds, in turn."""

    def __init__(self, shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.held = [torch.randn(shape, generator=generator) for _ in range(53)]
        self.calls = 0

    def forward(self, x, label):
        self.calls += 1
        return self.held[self.calls % 53][: len(x)]


@pytest.mark.no_poison  # deterministic mode fills what is allocated, which would count
@pytest.mark.parametrize("order", [2, 3])
def test_a_trial_moves_little(order):
    """Order 2: 3 for the point between, 3 and 4 for the solutions, 3 for the error; order 3: 3 + 4 + 4 + 5 + 3."""
    shape = (4, 3, 16, 16)

    def run(steps):
        sampler = DPMSolverAdaptive(
            SDES["vp"], Outputs(shape), order=order, rtol=1e-3, atol=1e-3, norm="max", max_steps=steps
        )
        with pytest.warns(RuntimeWarning, match="max_steps"):
            sampler.sample(shape)

    count = traffic_per_step(run, torch.empty(shape), (2, 8))
    print(f"order {order}: {count}, {count.moved / order:.2f} per network call")
    assert count.by_op["fastscore::error_norm"] == (1, 3)
    assert count.by_op["fastscore::linear_step"] == ((3, 10) if order == 2 else (4, 16))
    assert count.full == order + 2

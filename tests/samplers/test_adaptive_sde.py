"""The adaptive SDE solver: the literal reference, recorded runs, the law it samples, and what a call may cost."""

from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, AdaptiveSDESampler, Convention, DiscreteVPSDE, EulerMaruyamaSampler, SubVPSDE
from fastscore.noise import PhiloxNoise, ReplayNoise
from fastscore.reference.samplers import adaptive_sde_sampler
from fastscore.samplers import Hook
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.statistics import (
    AnalyticModel,
    CountingModel,
    assert_same_law,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)
from fastscore.testing.traffic import traffic_per_step

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "alexia")
SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(200, 5e-4, 0.1)}
CLASSES = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}


def exact_network(name, data):
    if name == "ve":
        return AnalyticModel(data, ve_perturbation, "score")
    return AnalyticModel(data, vp_perturbation(subvp=name == "subvp"), "noise")


def smooth(x, label):
    return torch.tanh(x * 0.7) - 0.1 * x + label.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("name", SDES)
def test_equals_the_literal_reference(name, prediction):
    sde, convention, noise = SDES[name], Convention(prediction, "log_sigma"), PhiloxNoise(1)
    options = {"rtol": 0.1, "atol": 0.02, "eps": 0.02, "exponent": 0.7, "safety": 0.8, "h_init": 0.02}
    start = sde.prior_sample((3, 2, 4, 4), noise=noise, dtype=torch.float64)
    for denoise in (True, False):
        model = CountingModel(smooth)
        sampler = AdaptiveSDESampler(sde, model, convention=convention, denoise=denoise, **options)
        x, info = sampler.sample(start, noise=noise, return_info=True)
        expected, counts = adaptive_sde_sampler(sde, smooth, start, noise, convention, denoise=denoise, **options)
        assert list(zip(info.accepted.tolist(), info.rejected.tolist(), strict=True)) == counts
        torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
        assert info.nfe.tolist() == [2 * a + r + denoise for a, r in counts]
        assert model.samples == int(info.nfe.sum())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backends_and_a_hook_that_does_nothing_change_nothing(backend):
    class Nothing(Hook):
        def on_denoised(self, denoised, x, moment):
            return None

    data = mixture_2d()
    sampler = AdaptiveSDESampler(SDES["vp"], exact_network("vp", data), rtol=0.1, atol=0.05)
    expected = sampler.sample((4, *data.shape), seed=2, dtype=torch.float64)
    with fastscore.backend(backend):
        for hooks in ([], [Nothing()]):
            x = sampler.sample((4, *data.shape), seed=2, dtype=torch.float64, hooks=hooks)
            torch.testing.assert_close(x, expected, rtol=1e-7, atol=1e-7)


def setting(case):
    sde_args = {name: value for name, value in case.args["sde"].items() if name not in ("cls", "N", "T")}
    model = golden_model(case, load_mixture(FOLDER))
    model.record = True
    return CLASSES[case.args["sde"]["cls"]](**sde_args), model, ReplayNoise(list(case.tensors["noise"]))


def assert_golden(case, x):
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance


@pytest.mark.parametrize("case", [case for case in CASES if case.args["adaptive"]], ids=str)
def test_takes_the_published_steps(case):
    """Every trial of both samples: its time, its length, and whether it was accepted.

    The published code calls the network for samples that have arrived, and anew after a rejection.
    """
    args = case.args
    sde, model, noise = setting(case)
    sampler = AdaptiveSDESampler(
        sde,
        model,
        rtol=args["reltol"],
        atol=args["abstol"],
        h_init=args["h_init"],
        safety=args["safety"],
        exponent=args["exp"],
        eps=args["eps"],
        denoise=args["denoise"],
        convention=Convention("score", "time"),
    )
    trials = []
    x, info = sampler.sample(
        args["shape"], noise=noise, return_info=True, callback=lambda i, trial, x: trials.append(trial)
    )
    assert len(trials) == case.scalars["returned_N"] - 1
    for i, trial in enumerate(trials):
        t, h, after = (case.tensors[name][i][trial.rows].double() for name in ("trial_t", "trial_h", "trial_t_after"))
        torch.testing.assert_close(trial.t, t, rtol=0, atol=2e-6)
        torch.testing.assert_close(trial.t - trial.t_next, h, rtol=0, atol=2e-6)
        torch.testing.assert_close(torch.where(trial.accepted, trial.t_next, trial.t), after, rtol=0, atol=2e-6)
    assert torch.equal(info.nfe, 2 * info.accepted + info.rejected + args["denoise"])
    assert int(info.nfe.max()) < case.scalars["model_calls"]
    assert_golden(case, x)


@pytest.mark.parametrize("case", [case for case in CASES if not case.args["adaptive"]], ids=str)
def test_its_euler_maruyama_is_ours_and_one_more_step_to_zero(case):
    """The published grid of N times ends with a step of eps to t = 0, with drift and diffusion at eps."""
    args = case.args
    sde, model, noise = setting(case)
    n, eps = args["sde"]["N"], args["eps"]
    sampler = EulerMaruyamaSampler(
        sde, model, steps=n - 1, eps=eps, denoise=False, convention=Convention("score", "time")
    )
    x = sampler.sample(args["shape"], noise=noise)
    score = model(x, torch.full((len(x),), eps))
    f, g = float(sde.drift_coefficient(eps)), float(sde.diffusion(eps))
    x = x - (f * x - g**2 * score) * eps + g * eps**0.5 * noise.normal(x.shape)
    if args["denoise"]:
        x = x + float(sde.sigma(eps)) ** 2 * model(x, torch.full((len(x),), eps))
    labels = torch.stack([label[0] for label in model.labels])
    torch.testing.assert_close(labels, case.tensors["call_labels"], rtol=0, atol=1e-6)
    assert model.calls == case.scalars["model_calls"]
    assert_golden(case, x)


def test_every_recorded_run_is_replayed():
    assert [case.args["adaptive"] for case in CASES] == [True, True, True, False, False]


@pytest.mark.no_poison
@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_reaches_the_law(name, data):
    """With short steps, so that hardly a trial is rejected: in two dimensions that biases the law, see below."""
    sampler = AdaptiveSDESampler(SDES[name], exact_network(name, data), rtol=0.02, atol=0.002, safety=0.1)
    x, info = sampler.sample((1500, *data.shape), seed=3, return_info=True)
    print(f"{name}: {float(info.nfe.double().mean()):.0f} network calls on average")
    assert int(info.rejected.sum()) < 0.04 * int(info.accepted.sum())
    assert_same_law(x, data, f"{name} adaptive SDE")


@pytest.mark.no_poison
@pytest.mark.parametrize(("size", "count", "bias"), [(2, 4000, 0.66), (3072, 64, 0.0)])
def test_giving_up_rejected_noise_biases_the_law_in_few_dimensions_alone(size, count, bias):
    """The method's own, as published: where one draw decides, those that are kept are not normal any more."""

    def noise_prediction(x, label):
        alpha, sigma = (c.reshape(-1, 1) for c in vp_perturbation()(label.double()))
        return (sigma * (x.double() - 0.4 * alpha) / (0.3 * alpha**2 + sigma**2)).to(x.dtype)

    x = AdaptiveSDESampler(SDES["vp"], noise_prediction, rtol=0.05).sample((count, size), seed=5)
    ratio = float((x - 0.4).square().mean()) / 0.3 - 1
    print(f"{size} dimensions: variance {ratio:+.1%}")
    assert abs(ratio - bias) < 4 * (2 / (count * size)) ** 0.5 + 0.02 * (bias > 0)


def test_rejected_noise_is_given_up_and_the_next_trial_draws_its_own():
    """Trial i has draw i + 1 whether the trials before were accepted or not."""
    draws = []

    class Counted(ReplayNoise):
        def normal(self, shape, *, dtype=torch.float32, device=None, draw=0):
            draws.append(draw)
            return PhiloxNoise(4).normal(shape, dtype=dtype, device=device, draw=draw)

    sampler = AdaptiveSDESampler(SDES["vp"], smooth, h_init=0.5, rtol=0.01, atol=0.01, norm="batch")
    x, info = sampler.sample((2, 3, 4, 4), noise=Counted([]), return_info=True)
    assert int(info.rejected[0]) > 0
    assert draws == list(range(int(info.accepted[0] + info.rejected[0]) + 1))
    torch.testing.assert_close(sampler.sample((2, 3, 4, 4), seed=4), x, rtol=1e-3, atol=1e-3)


class Outputs(torch.nn.Module):
    """A network that costs nothing: one of the tensors it holds, in turn."""

    def __init__(self, shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.held = [0.01 * torch.randn(shape, generator=generator) for _ in range(53)]
        self.calls = 0

    def forward(self, x, label):
        self.calls += 1
        return self.held[self.calls % 53][: len(x)]


@pytest.mark.no_poison  # deterministic mode fills what is allocated, which would count
def test_a_trial_moves_ten_states():
    """3 for the Euler step, 4 for the new state, 3 for the error: the noise is drawn twice and never stored."""
    shape = (4, 3, 16, 16)

    def run(steps):
        sampler = AdaptiveSDESampler(SDES["vp"], Outputs(shape), rtol=0.01, atol=0.01, norm="batch", max_steps=steps)
        with pytest.warns(RuntimeWarning, match="max_steps"):
            sampler.sample(shape)

    count = traffic_per_step(run, torch.empty(shape), (3, 13))
    print(f"{count}, {count.moved / 2:.2f} per network call")
    assert count.by_op["fastscore::linear_step"] == (2, 7)
    assert count.by_op["fastscore::error_norm"] == (1, 3)
    assert count.full == 3

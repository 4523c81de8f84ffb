"""Adams-Bashforth methods in the noise level: exact weights, parity, recorded and live published runs, cost, errors."""

import itertools
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, DPMSolverSampler, LMSSampler, SubVPSDE
from fastscore.reference.samplers import lms_sampler, spaced_times
from fastscore.reference.samplers._network import denoised
from fastscore.samplers.linear_multistep import adams_bashforth
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import Held, Smooth, Watching, assert_reads_nothing_between_steps
from fastscore.testing.peers import k_diffusion_sampling
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation
from fastscore.testing.traffic import traffic_per_step

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(50, 1e-3, 0.2)}
SHAPE = (2, 3, 4, 4)
LARGE = (2, 3, 16, 16)  # larger than any table of coefficients, which traffic must not count
FOLDER = Path(__file__).parents[1] / "golden" / "samplers"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["1"]),
        (2, ["3/2", "-1/2"]),
        (3, ["23/12", "-4/3", "5/12"]),
        (4, ["55/24", "-59/24", "37/24", "-3/8"]),
    ],
)
def test_weights_on_even_levels_are_the_classical_ones(count, expected):
    weights = adams_bashforth([5.0 - 0.5 * -k for k in range(count)], 4.5)
    for weight, value in zip(weights, expected, strict=True):
        assert weight == pytest.approx(-0.5 * float(Fraction(value)), rel=1e-14)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_integrate_polynomials_exactly(count):
    levels, end = [0.31, 0.8, 2.7, 9.0][:count], 0.05
    weights = adams_bashforth(levels, end)
    for power in range(count):
        integral = (end ** (power + 1) - levels[0] ** (power + 1)) / (power + 1)
        total = sum(w * level**power for w, level in zip(weights, levels, strict=True))
        assert total == pytest.approx(integral, rel=1e-12)


def assert_equals_reference(
    sde, *, steps, order=4, spacing="karras", clean=True, convention=None, clip=None, hooks=(), start=None
):
    times = spaced_times(sde, spacing, steps + 1 - clean, 0.02)
    shared = {"steps": steps, "order": order, "eps": 0.02, "spacing": spacing, "denoise": clean, "clip": clip}
    sampler = LMSSampler(sde, Smooth(), convention=convention, **shared)
    start = sde.prior_sample(SHAPE, dtype=torch.float64)
    x = sampler.sample(start, hooks=hooks)
    model, convention = Smooth(), sampler.convention
    if clip is not None:

        def model(x, t):
            return denoised(sde, Smooth(), x, float(t[0]), sampler.convention).clamp(-clip, clip)

        convention = Convention("denoised", "time")
    expected = lms_sampler(sde, model, start, convention, times, order=order, denoise=clean)
    error = float((x - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error < 1e-10, f"{error:.1e}"
    assert sampler.plan().nfe == steps


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_literal_reference(order, sde, clean):
    for steps, spacing in itertools.product((1, 2, 3, 9), ("karras", "linear", "log_snr")):
        assert_equals_reference(SDES[sde], steps=steps, order=order, spacing=spacing, clean=clean)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("order", [1, 4])
def test_every_prediction_with_hook_and_clip(order, prediction, backend):
    convention = Convention(prediction, "time")
    with fastscore.backend(backend):
        for sde, options in itertools.product(SDES.values(), ({}, {"hooks": [Watching()]}, {"clip": 0.4})):
            assert_equals_reference(sde, steps=6, order=order, convention=convention, **options)


@pytest.mark.parametrize("sde", SDES)
def test_order_one_is_ddim(sde):
    x, y = (
        sampler.sample(SHAPE, seed=2, dtype=torch.float64)
        for sampler in (
            LMSSampler(SDES[sde], Smooth(), steps=6, order=1, spacing="log_snr"),
            DPMSolverSampler(SDES[sde], Smooth(), steps=6, order=1, denoise=True),
        )
    )
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", load_cases(FOLDER, "k", "k.lms."), ids=str)
def test_recorded_runs(case, backend):
    """k-diffusion integrates by quadrature, to 1e-4 at least; of these cubics it is exact."""
    sde = VESDE(1e-3, 80.0)
    times = sde.inverse_log_snr(-2 * case.tensors["sigmas"][:-1].double().log())
    model, convention = golden_model(case, load_mixture(FOLDER)), Convention("denoised", "sigma")
    model.record = True
    order = case.args.get("order", 4)
    sampler = LMSSampler(sde, model, steps=case.args["steps"], order=order, spacing=times, convention=convention)
    with fastscore.backend(backend):
        x = sampler.sample(case.tensors["x"])
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.1e} of {case.tolerance:.1e}")
    assert error <= case.tolerance
    assert model.calls == case.scalars["model_calls"]
    labels = torch.stack([label[0].double() for label in model.labels])
    torch.testing.assert_close(labels, case.tensors["call_labels"].double(), rtol=2e-6, atol=2e-5)
    literal = lms_sampler(sde, model, case.tensors["x"], convention, times, order=order)
    assert float((literal - case.tensors["result"]).abs().max()) <= case.tolerance


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_k_diffusion(order):
    model, sde, n = AnalyticModel(mixture_2d(), ve_perturbation, "denoised"), VESDE(0.01, 10.0), 14
    latent = 10 * torch.randn(4, *mixture_2d().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = spaced_times(sde, "karras", n, 0.1)
    sigmas = torch.cat([sde.sigma(times), torch.zeros(1, dtype=torch.float64)])
    expected = k_diffusion_sampling().sample_lms(model, latent, sigmas, order=order, disable=True)
    sampler = LMSSampler(sde, model, steps=n, order=order, eps=0.1, convention=Convention("denoised", "sigma"))
    torch.testing.assert_close(sampler.sample(latent), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", ["noise", "denoised", "v"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_step_moves_the_least_it_can(order, prediction):
    """State, output, order - 1 older predictions; the state and, where it is used again, a prediction are written."""
    convention = Convention(prediction, "time")
    samplers = {n: LMSSampler(VPSDE(), Held(LARGE), steps=n, order=order, convention=convention) for n in (20, 24)}
    count = traffic_per_step(lambda n: samplers[n].sample(LARGE, seed=0), torch.empty(LARGE), (20, 24))
    assert 0 < count.moved <= 3 + order, count.by_op
    assert count.full == 1, count.by_op
    assert count.calls <= 5, count.by_op


def test_no_host_synchronization_between_steps():
    assert_reads_nothing_between_steps(lambda model: LMSSampler(VPSDE(), model, steps=12), LARGE, 12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 5}, ValueError, "LMSSampler: order must be 1, 2, 3 or 4, got 5"),
        ({"order": 0}, ValueError, "order must be at least 1, got 0"),
        ({"order": 2.0}, TypeError, "order must be an integer, got 2.0"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"rho": math.inf}, ValueError, "rho must be a finite number of at least 1, got inf"),
        ({"spacing": "even"}, ValueError, "spacing must be one of linear, .* got 'even'"),
    ],
)
def test_bad_construction(options, error, message):
    with pytest.raises(error, match=message):
        LMSSampler(VPSDE(), Smooth(), **{"steps": 6} | options)

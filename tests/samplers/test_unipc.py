"""UniPC: parity with the reference, recorded and live published runs, cost, errors."""

import itertools
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, DPMSolverSampler, SubVPSDE, UniPCSampler
from fastscore.reference.samplers import spaced_times, unipc_sampler
from fastscore.reference.samplers._network import denoised
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import Held, Smooth, Watching, assert_reads_nothing_between_steps
from fastscore.testing.statistics import AnalyticModel, mixture_2d
from fastscore.testing.traffic import traffic_per_step

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(50, 1e-3, 0.2)}
SHAPE = (2, 3, 4, 4)
LARGE = (2, 3, 16, 16)  # larger than any table of coefficients, which traffic must not count
FOLDER = Path(__file__).parents[1] / "golden" / "samplers"


def assert_equals_reference(
    sde, *, steps, spacing="log_snr", clean=True, convention=None, clip=None, hooks=(), **options
):
    times = spaced_times(sde, spacing, steps + 1 - clean, 0.02)
    shared = {"steps": steps, "eps": 0.02, "spacing": spacing, "denoise": clean, "clip": clip}
    sampler = UniPCSampler(sde, Smooth(), convention=convention, **shared, **options)
    start = sde.prior_sample(SHAPE, dtype=torch.float64)
    x = sampler.sample(start, hooks=hooks)
    model, convention = Smooth(), sampler.convention
    if clip is not None:

        def model(x, t):
            return denoised(sde, Smooth(), x, float(t[0]), sampler.convention).clamp(-clip, clip)

        convention = Convention("denoised", "time")
    expected = unipc_sampler(sde, model, start, convention, times, denoise=clean, **options)
    error = float((x - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    assert error < 1e-10, f"{error:.1e}"
    assert sampler.plan().nfe == steps


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_the_literal_reference(order, predict_x0, variant, sde, clean):
    """In float64, so that only a wrong formula can differ; with 1, 2 and 3 steps, too."""
    options = {"order": order, "predict_x0": predict_x0, "variant": variant, "clean": clean}
    for steps, spacing in ((1, "log_snr"), (2, "linear"), (3, "log_snr"), (9, "linear")):
        assert_equals_reference(SDES[sde], steps=steps, spacing=spacing, **options)
    for some in ({"disable_corrector": (0, 3)}, {"disable_corrector": range(7)}, {"lower_order_final": False}):
        assert_equals_reference(SDES[sde], steps=7, **options, **some)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_every_prediction_with_hook_and_clip(predict_x0, prediction, backend):
    options = {"order": 3, "predict_x0": predict_x0, "convention": Convention(prediction, "time")}
    with fastscore.backend(backend):
        for sde, some in itertools.product(SDES.values(), ({}, {"hooks": [Watching()]}, {"clip": 0.4})):
            assert_equals_reference(sde, steps=7, **options, **some)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_without_corrector_it_is_dpm_solver(sde, algorithm):
    """Order 2 with B = e^h - 1 is the midpoint solver, order 3 the full Taylor expansion after its first two steps."""
    shared = {"steps": 16, "spacing": "log_snr"}
    samplers = (
        UniPCSampler(
            SDES[sde], Smooth(), order=2, predict_x0=algorithm == "dpmsolver++", disable_corrector=range(16),
            lower_order_final=False, denoise=False, **shared,
        ),
        DPMSolverSampler(SDES[sde], Smooth(), order=2, algorithm=algorithm, **shared),
    )  # fmt: skip
    x, y = (sampler.sample(SHAPE, seed=3, dtype=torch.float64) for sampler in samplers)
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", load_cases(FOLDER, "diffusers", "df.UniPCMultistep"), ids=str)
def test_recorded_runs(case, backend):
    sde = DiscreteVPSDE.from_betas(case.tensors["betas"], min_log_snr=None)
    times = sde.times(case.tensors["timesteps"].tolist())
    model, order = golden_model(case, load_mixture(FOLDER)), case.args["config"]["solver_order"]
    model.record = True
    sampler = UniPCSampler(sde, model, steps=case.args["num_inference_steps"], order=order, spacing=times)
    states = []
    with fastscore.backend(backend):
        x = sampler.sample(case.tensors["x_init"], callback=lambda i, step, x: states.append(x))
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.1e} of {case.tolerance:.1e}")
    assert error <= case.tolerance
    assert model.calls == case.scalars["model_calls"]
    assert float((torch.stack(states) - case.tensors["prev_samples"]).abs().max()) <= 1e-5
    labels = torch.stack([label[0].double() for label in model.labels])
    torch.testing.assert_close(labels, case.tensors["call_labels"].double(), rtol=1e-12, atol=1e-9)
    literal = unipc_sampler(sde, model, case.tensors["x_init"], sampler.convention, times, order=order)
    assert float((literal - case.tensors["result"]).abs().max()) <= case.tolerance


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("some", [{}, {"disable_corrector": [0, 2]}, {"lower_order_final": False}], ids=str)
def test_equals_diffusers(order, solver_type, predict_x0, some):
    from diffusers import UniPCMultistepScheduler

    # in the step to no noise diffusers has 0 times infinity, but for the defaults: "bh2", the clean image, order 1
    n, clean = 9, predict_x0 and solver_type == "bh2" and "lower_order_final" not in some
    scheduler = UniPCMultistepScheduler(
        beta_schedule="scaled_linear",
        solver_order=order,
        solver_type=solver_type,
        predict_x0=predict_x0,
        final_sigmas_type="zero" if clean else "sigma_min",
        **some,
    )
    scheduler.set_timesteps(n)
    log_alphas = 0.5 * torch.log1p(-scheduler.betas.double()).cumsum(0)

    def perturb(label):
        log_alpha = log_alphas[label.long()]
        return log_alpha.exp(), torch.expm1(2 * log_alpha).neg().sqrt()

    model = AnalyticModel(mixture_2d(), perturb, "noise")
    x = latent = torch.randn(4, *mixture_2d().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(4)), t, x).prev_sample
    # with their rounding to float32, which shifts the last level by 1.7e-4 in log-SNR
    sde = DiscreteVPSDE.from_alphas_cumprod(scheduler.alphas_cumprod, min_log_snr=None)
    times = sde.times([*scheduler.timesteps.tolist(), *[0] * (not clean)])
    options = {"order": order, "variant": solver_type, "predict_x0": predict_x0, "denoise": clean, **some}
    sampler = UniPCSampler(sde, model, steps=n, spacing=times, **options)
    # their coefficients are float32
    torch.testing.assert_close(sampler.sample(latent), x, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("prediction", ["noise", "denoised", "v"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("corrector", [True, False])
def test_a_step_moves_the_least_it_can(corrector, order, prediction):
    """The corrector is of one order more, and looks at one prediction more."""
    options = {"order": order, "convention": Convention(prediction, "time"), "lower_order_final": False}
    samplers = {
        n: UniPCSampler(VPSDE(), Held(LARGE), steps=n, disable_corrector=() if corrector else range(n), **options)
        for n in (20, 24)
    }
    count = traffic_per_step(lambda n: samplers[n].sample(LARGE, seed=0), torch.empty(LARGE), (20, 24))
    assert 0 < count.moved <= 3 + order + corrector, count.by_op
    assert count.full == 1, count.by_op
    assert count.calls <= 5, count.by_op


def test_no_host_synchronization_between_steps():
    assert_reads_nothing_between_steps(lambda model: UniPCSampler(VPSDE(), model, steps=12, order=3), LARGE, 12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 4}, ValueError, "UniPCSampler: order must be 1, 2 or 3, got 4"),
        ({"order": 0}, ValueError, "order must be at least 1, got 0"),
        ({"order": 2.0}, TypeError, "order must be an integer, got 2.0"),
        ({"variant": "vary_coeff"}, ValueError, "variant must be one of bh1, bh2, got 'vary_coeff'"),
        ({"disable_corrector": [6]}, ValueError, r"must hold numbers of steps, 0 to 5, got \[6\]"),
        ({"disable_corrector": [0.5]}, ValueError, r"must hold numbers of steps, 0 to 5, got \[0.5\]"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"spacing": "even"}, ValueError, "spacing must be one of linear, .* got 'even'"),
    ],
)
def test_bad_construction(options, error, message):
    with pytest.raises(error, match=message):
        UniPCSampler(VPSDE(), Smooth(), **{"steps": 6} | options)

"""Gradient steps towards a measurement: the published algorithms written out, and every sampler with them."""

import warnings

import pytest
import torch

import fastscore
from fastscore import VPSDE, Convention, DDPMSampler, PhiloxNoise, ReplayNoise
from fastscore.control import DPSGuidance, LinearReplacement, averaging, matrix
from fastscore.samplers import describe, names
from fastscore.testing.statistics import AnalyticModel, Mixture, vp_perturbation

VP, SHAPE = VPSDE(), (1, 4, 4)
TIME = vp_perturbation(label_scale=1.0)
NOISE = Convention("noise", "time")
GENERATOR = torch.Generator().manual_seed(0)
DATA = Mixture(
    torch.randn(3, *SHAPE, dtype=torch.float64, generator=GENERATOR), torch.tensor([0.5, 0.3, 0.2]).double(), 0.4
)
SENSING = matrix(torch.randn(5, 16, dtype=torch.float64, generator=GENERATOR) / 4, SHAPE)
Y = SENSING.forward(DATA.sample(3, seed=1))
ELSEWHERE = ("consistency", "langevin", "annealed-langevin", "langevin-corrector")  # do not reach the data in 40 steps


def model():
    network = AnalyticModel(DATA, TIME, "noise")
    network.convention = NOISE
    return network


def guidance(zeta=0.4, y=Y):
    return DPSGuidance(model(), SENSING, y, zeta=zeta)


@pytest.mark.parametrize("projected", [False, True], ids=["dps", "mcg"])
def test_is_the_published_algorithm(projected):
    """Ancestral steps of DDPM; the gradient of the norm by autograd; A x replaced by that of the noised image."""
    steps, zeta = 6, 0.4
    times = [float(t) for t in torch.linspace(1.0, VP.sampling_eps, steps, dtype=torch.float64)] + [0.0]
    levels = [*(tuple(float(v) for v in VP.marginal(t)) for t in times[:-1]), (1.0, 0.0)]
    noise = torch.randn(100, 3, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    a = SENSING.forward(torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE)).T
    x, draws = noise[0].clone(), iter(noise[1:])

    def replaced(x, known):
        return x + ((known - x.flatten(1) @ a.T) @ torch.linalg.pinv(a).T).reshape(x.shape)

    for i in range(steps):
        (alpha, sigma), (alpha_s, sigma_s) = levels[i], levels[i + 1]
        if projected:
            x = replaced(x, alpha * Y + sigma * next(draws).flatten(1) @ a.T)
        x = x.requires_grad_()
        clean = DATA.denoised(x, torch.full((3,), alpha), torch.full((3,), sigma))
        norms = (Y - clean.flatten(1) @ a.T).square().sum(1).sqrt()
        descent = -torch.autograd.grad(norms.sum(), x)[0]
        ratio = alpha / alpha_s
        b2 = sigma**2 - (ratio * sigma_s) ** 2
        x = (ratio * sigma_s**2 / sigma**2 * x + alpha_s * b2 / sigma**2 * clean).detach()
        if i + 1 < steps:
            x = x + b2**0.5 * sigma_s / sigma * next(draws)
        x = x + zeta * descent
    x = replaced(x, Y) if projected else x
    hooks = [LinearReplacement(SENSING, Y), guidance(zeta)] if projected else [guidance(zeta)]
    recording = ReplayNoise(list(noise[1:]))
    result = DDPMSampler(VP, model(), steps=steps).sample(noise[0], noise=recording, hooks=hooks)
    assert recording.position == (2 * steps - 1 if projected else steps - 1)
    torch.testing.assert_close(result, x, rtol=1e-5, atol=1e-5)  # the network is given times in float32


@pytest.mark.parametrize("name", [name for name in names() if name not in ELSEWHERE])
def test_leads_to_the_measurement_in_every_sampler(name):
    """Alone it comes nearer than chance, with the projection it meets the measurement."""
    tolerance = 1e-7 if name == "rk45" else 2e-2  # for tens of steps: of the gradient, each makes as much
    adaptive = describe(name).calls == "adaptive"
    options = {"rtol": tolerance, "atol": tolerance} if adaptive else {"steps": 40}
    gaps = []
    for hooks in ([], [guidance(0.5)], [LinearReplacement(SENSING, Y), guidance(0.5)]):
        sampler = fastscore.sampler(name, VP, model(), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            x = sampler.sample((3, *SHAPE), dtype=torch.float64, hooks=hooks)
        gaps.append(float((SENSING.forward(x) - Y).norm()))
    print(name, gaps)
    assert gaps[1] < 0.6 * gaps[0]
    assert gaps[2] < 1e-12


@pytest.mark.parametrize("name", ["dpmpp-2m", "rk45", "adaptive-sde"])
def test_a_sample_does_not_depend_on_its_batchmates(name):
    options = {"rtol": 5e-2, "atol": 5e-2} if describe(name).calls == "adaptive" else {"steps": 5}
    sampler = fastscore.sampler(name, VP, model(), **options)
    together = sampler.sample((3, *SHAPE), dtype=torch.float64, hooks=[guidance()])
    for i in range(3):
        alone = sampler.sample(
            (1, *SHAPE), dtype=torch.float64, noise=PhiloxNoise(0, samples=[i]), hooks=[guidance(y=Y[i : i + 1])]
        )
        torch.testing.assert_close(alone[0], together[i], rtol=1e-6, atol=1e-6)


def test_a_measurement_that_is_met_moves_nothing():
    """Where the norm is 0 it has no gradient."""
    hook = DPSGuidance(lambda x, times: 0 * x, SENSING, torch.zeros(1, 5), zeta=1.0, convention=Convention("denoised"))
    sampler = fastscore.sampler("ddim", VP, model(), steps=3)
    x = torch.ones(2, *SHAPE, dtype=torch.float64)
    assert torch.equal(sampler.sample(x, hooks=[hook]), sampler.sample(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_that_of_the_state_also_in_inference_mode(dtype):
    sampler = fastscore.sampler("ddim", VP, model(), steps=3)
    x = sampler.sample((3, *SHAPE), dtype=dtype, hooks=[guidance()])
    with torch.inference_mode():
        torch.testing.assert_close(sampler.sample((3, *SHAPE), dtype=dtype, hooks=[guidance()]), x)
    assert x.dtype == dtype
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DPSGuidance(None, SENSING, Y, zeta=1.0), TypeError, "network must be callable as network.x, times."),
        (lambda: DPSGuidance(abs, None, Y, zeta=1.0), TypeError, "operator must be a LinearOperator, got NoneType"),
        (lambda: DPSGuidance(abs, averaging(2, SHAPE), Y, zeta=1.0), ValueError, r"measurement must .*, got \(3, 5\)"),
        (lambda: DPSGuidance(abs, SENSING, Y / 0, zeta=1.0), ValueError, "measurement must be finite"),
        (
            lambda: DPSGuidance(abs, SENSING, Y, zeta=-1.0),
            ValueError,
            "zeta must be a finite number at least 0, got -1",
        ),
        (lambda: DPSGuidance(abs, SENSING, Y, zeta="1"), TypeError, "zeta must be a number, got '1'"),
        (lambda: DPSGuidance(abs, SENSING, Y, zeta=1.0, convention="v"), TypeError, "convention must be a fastscore"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("hook", "shape", "message"),
    [
        (guidance(), (2, *SHAPE), "DPSGuidance: measurement must have 1 row, or .*, 2, got 3"),
        (DPSGuidance(abs, averaging(2, (1, 8, 8)), torch.zeros(1, 1, 4, 4), zeta=1.0), (3, *SHAPE), "operator must be"),
        (
            DPSGuidance(lambda x, times: torch.zeros_like(x), SENSING, Y, zeta=1.0),
            (3, *SHAPE),
            "network must be differentiable in x",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_sampling(hook, shape, message):
    with pytest.raises(ValueError, match=message):
        fastscore.sampler("ddim", VP, model(), steps=2).sample(shape, hooks=[hook])

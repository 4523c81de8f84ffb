"""The predictor-corrector sampler as its user meets it: parity with the reference, invariances, options, errors."""

import itertools

import pytest
import torch
from torch import nn

import fastscore
from fastscore import VESDE, VPSDE, Convention, EulerMaruyamaSampler, NonFiniteError, PCSampler, SubVPSDE
from fastscore.noise import PhiloxNoise, ReplayNoise, TorchNoise
from fastscore.reference.samplers import euler_maruyama_sampler, pc_sampler
from fastscore.samplers import CORRECTORS, PREDICTORS
from fastscore.testing.networks import Smooth

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE()}
SHAPE = (2, 3, 8, 8)
COMBINATIONS = [
    pytest.param(*c, id="-".join(map(str, c)))
    for c in itertools.product(SDES, PREDICTORS, CORRECTORS, [False, True])
    if not (c[1] == "ancestral" and c[3])
]


@pytest.mark.parametrize(("sde_name", "predictor", "corrector", "probability_flow"), COMBINATIONS)
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_equals_the_literal_reference(sde_name, predictor, corrector, probability_flow, norm):
    """In float64, so that only a wrong formula can differ; every combination, also those published code crashes on."""
    sde, options = SDES[sde_name], {"snr": 0.1, "steps": 30, "corrector_steps": 2, "norm": norm}
    options |= {"predictor": predictor, "corrector": corrector, "probability_flow": probability_flow}
    sampler = PCSampler(sde, Smooth(), **options)
    x = sampler.sample(SHAPE, seed=5, dtype=torch.float64)
    noise = PhiloxNoise(5)
    start = sde.prior_sample(SHAPE, noise=noise, dtype=torch.float64)
    expected = pc_sampler(sde, Smooth(), start, noise, sampler.convention, eps=sampler.eps, **options)
    torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("sde_name", SDES)
def test_every_prediction_equals_the_literal_reference(prediction, sde_name):
    sde, convention = SDES[sde_name], Convention(prediction, "log_sigma")
    sampler = EulerMaruyamaSampler(sde, Smooth(), steps=40, eps=0.01, convention=convention)
    x = sampler.sample(SHAPE, seed=6, dtype=torch.float64)
    noise = PhiloxNoise(6)
    start = sde.prior_sample(SHAPE, noise=noise, dtype=torch.float64)
    expected = euler_maruyama_sampler(sde, Smooth(), start, noise, convention, steps=40, eps=0.01)
    scale = float(expected.abs().max())
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10 * scale)


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("sde_name", SDES)
def test_a_sample_does_not_depend_on_its_batchmates(sde_name, corrector):
    """To the last bit, in batches of 1, 7 and 64, on 1 and 2 threads, and whatever the memory format."""
    sampler = PCSampler(SDES[sde_name], Smooth(), corrector=corrector, steps=25, norm="sample")
    shape = (3, 12, 12)
    whole = sampler.sample((64, *shape), seed=3)
    assert torch.equal(sampler.sample((7, *shape), seed=3), whole[:7])
    for i in (0, 6, 63):
        assert torch.equal(sampler.sample((1, *shape), noise=PhiloxNoise(3, torch.tensor([i]))), whole[i : i + 1])
    shard = sampler.sample((32, *shape), noise=PhiloxNoise(3, torch.arange(32, 64)))
    assert torch.equal(shard, whole[32:])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(sampler.sample((64, *shape), seed=3), whole)
    finally:
        torch.set_num_threads(threads)
    latent = SDES[sde_name].prior_sample((64, *shape), noise=PhiloxNoise(3))
    channels_last = sampler.sample(latent.to(memory_format=torch.channels_last), seed=3)
    assert torch.equal(channels_last, whole)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


def test_batch_norms_do_depend_on_batchmates():
    """The published step size is a mean over the batch; norm="sample" exists because of this."""
    sampler = PCSampler(VPSDE(), Smooth(), steps=25, norm="batch")
    assert not torch.equal(sampler.sample((7, 3, 8, 8), seed=3), sampler.sample((64, 3, 8, 8), seed=3)[:7])


def test_torch_noise_draws_in_the_published_order():
    sampler = PCSampler(VPSDE(), Smooth(), steps=25)
    x = sampler.sample(SHAPE, noise=TorchNoise(torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    recording = [torch.randn(SHAPE, generator=generator) for _ in range(51)]
    assert torch.equal(sampler.sample(SHAPE, noise=ReplayNoise(recording)), x)


def test_denoise_leaves_out_the_last_noise_alone():
    noisy = PCSampler(VPSDE(), Smooth(), corrector="none", steps=25, denoise=False)
    clean = PCSampler(VPSDE(), Smooth(), corrector="none", steps=25)
    a, b = noisy.sample(SHAPE, seed=0), clean.sample(SHAPE, seed=0)
    z = PhiloxNoise(0).normal(SHAPE, dtype=torch.float32, device=torch.device("cpu"), draw=25)
    torch.testing.assert_close(a, b + noisy.plan().steps[-1].coefficients[2] * z)
    assert clean.plan().steps[-1].coefficients[2] == 0
    assert clean.plan().nfe == noisy.plan().nfe == 25


def test_plan_prints_every_coefficient():
    sampler = PCSampler(VPSDE(), Smooth(), steps=30, corrector_steps=2)
    text = str(sampler.plan())
    assert text.startswith("90 network calls")
    assert len(text.splitlines()) == 3 + 90
    first = sampler.plan().steps[2]
    assert f"a = {first.coefficients[0]:.8g}" in text
    assert [s.name for s in sampler.plan().steps[:3]] == ["langevin", "langevin", "reverse_diffusion"]


def test_latent_callback_info_and_progress(capsys):
    latent = torch.randn(SHAPE)
    before = latent.clone()
    seen = []
    sampler = PCSampler(VPSDE(), Smooth(), steps=25)
    x, info = sampler.sample(
        latent, seed=0, progress=True, callback=lambda i, step, x: seen.append((i, step.name, x)), return_info=True
    )
    assert torch.equal(latent, before)
    assert [i for i, _, _ in seen] == list(range(50))
    assert torch.equal(seen[-1][2], x)
    assert not torch.equal(seen[-2][2], x)
    assert info.nfe == 50
    assert info.seconds > 0
    assert "sampling" in capsys.readouterr().err


def test_network_mode_comes_back():
    model = nn.Sequential(nn.Dropout(0.5))
    model.forward = lambda x, label: nn.Sequential.forward(model, x)
    sampler = PCSampler(VPSDE(), model, steps=25)
    assert torch.equal(sampler.sample(SHAPE, seed=0), sampler.sample(SHAPE, seed=0))
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    sampler = PCSampler(VPSDE(), Smooth(), steps=25)
    x = sampler.sample(SHAPE, seed=0, dtype=dtype)
    assert x.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(sampler.sample(SHAPE, seed=0), x.float(), rtol=1e-4, atol=1e-5)


def test_any_shape_and_empty_batch():
    sampler = PCSampler(VPSDE(), Smooth(), steps=25)
    assert sampler.sample((4, 2)).shape == (4, 2)
    assert sampler.sample((0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_public_names():
    for name in ("PCSampler", "EulerMaruyamaSampler", "VESDE", "VPSDE", "SubVPSDE", "Convention", "NonFiniteError"):
        assert name in fastscore.__all__


VP, NET = VPSDE(), Smooth()


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: PCSampler("vp", NET), TypeError, r"sde must be a fastscore SDE .* got str"),
        (lambda: PCSampler(VP, 3), TypeError, r"model must be callable as model\(x, labels\), got int"),
        (lambda: PCSampler(VP, NET, "heun"), ValueError, r"predictor must be one of euler_maruyama, .* got 'heun'"),
        (
            lambda: PCSampler(VP, NET, corrector="mala"),
            ValueError,
            r"corrector must be one of langevin, ald, none, got",
        ),
        (lambda: PCSampler(VP, NET, norm="l2"), ValueError, r"norm must be one of batch, sample, got 'l2'"),
        (lambda: PCSampler(VP, NET, steps=0), ValueError, r"steps must be at least 1, got 0"),
        (lambda: PCSampler(VP, NET, steps=2.5), TypeError, r"steps must be an integer, got 2.5"),
        (lambda: PCSampler(VP, NET, snr=-0.1), ValueError, r"snr must be a finite number at least 0, got -0.1"),
        (lambda: PCSampler(VP, NET, snr=float("nan")), ValueError, r"snr must be a finite number at least 0, got nan"),
        (lambda: PCSampler(VP, NET, corrector_steps=-1), ValueError, r"corrector_steps must be at least 0, got -1"),
        (lambda: PCSampler(VP, NET, eps=0.0), ValueError, r"eps must be a finite number above 0 and below 1, got 0.0"),
        (
            lambda: PCSampler(VP, NET, convention="noise"),
            TypeError,
            r"convention must be a fastscore.Convention, got str",
        ),
        (lambda: PCSampler(VP, NET, steps=18), ValueError, r"beta_max / 18 = 1.11 >= 1 and does not exist"),
        (
            lambda: PCSampler(VP, NET, "ancestral", probability_flow=True),
            ValueError,
            r"probability_flow is not defined for predictor='ancestral'",
        ),
        (
            lambda: EulerMaruyamaSampler(VP, NET, steps=-3),
            ValueError,
            r"EulerMaruyamaSampler: steps must be at least 1",
        ),
    ],
)
def test_bad_construction(run, error, message):
    with pytest.raises(error, match=message):
        run()


@pytest.mark.parametrize(
    ("model", "arguments", "error", "message"),
    [
        (NET, {"shape_or_latent": ()}, ValueError, r"the shape must be \(B, ...\) in integers >= 0, got \(\)"),
        (NET, {"shape_or_latent": (2, -1)}, ValueError, r"got \(2, -1\)"),
        (
            NET,
            {"shape_or_latent": torch.zeros(2, 3, dtype=torch.int64)},
            ValueError,
            r"floating-point tensor .* torch.int64",
        ),
        (NET, {"dtype": torch.int32}, ValueError, r"dtype must be a floating-point type, got torch.int32"),
        (NET, {"noise": 7}, TypeError, r"noise must be .* got int"),
        (NET, {"seed": "a"}, TypeError, r"seed must be an integer, got 'a'"),
        (lambda x, t: x[:1], {}, ValueError, r"like its input, \(2, 3, 8, 8\) on cpu, got \(1, 3, 8, 8\) on cpu"),
        (lambda x, t: x.to("meta"), {}, ValueError, r"got \(2, 3, 8, 8\) on meta"),
        (lambda x, t: x.long(), {}, TypeError, r"must return a floating-point tensor, got torch.int64"),
        (lambda x, t: (x,), {}, TypeError, r"must return a tensor, got tuple"),
        (lambda x, t: x * float("nan"), {}, NonFiniteError, r"sample with check_finite=True"),
    ],
)
def test_bad_run(model, arguments, error, message):
    sampler = PCSampler(VP, model, steps=25)
    with pytest.raises(error, match=message):
        sampler.sample(**{"shape_or_latent": SHAPE} | arguments)


def test_non_finite_network_is_named_by_step_and_time():
    calls = itertools.count()

    def model(x, label):
        return x * float("nan") if next(calls) == 6 else x

    sampler = PCSampler(VP, model, steps=25)
    with pytest.raises(
        NonFiniteError, match=r"after step 6 \(langevin\) at t = 0.875\d*: the network output .* not finite"
    ):
        sampler.sample(SHAPE, check_finite=True)


def test_few_steps_are_finite_where_no_chain_is_needed():
    for steps in (1, 2, 5, 10, 18):
        sampler = PCSampler(VP, NET, "euler_maruyama", "none", steps=steps)
        assert torch.isfinite(sampler.sample(SHAPE, seed=0)).all()

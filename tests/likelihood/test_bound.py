"""The variational bound against closed forms, and what its user meets."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Normal, kl_divergence

from fastscore import (
    VESDE,
    VPSDE,
    Convention,
    DiscreteVPSDE,
    NonFiniteError,
    PhiloxNoise,
    SubVPSDE,
    variational_bound,
)
from fastscore.likelihood import bound
from fastscore.likelihood.chain import ChainStep, chain_steps
from fastscore.samplers.grid import CLEAN as CLEAN_NODE
from fastscore.samplers.grid import nodes
from fastscore.testing.fake_cuda import Devices, can_index_fake_cuda
from fastscore.testing.networks import Smooth, Watched
from fastscore.testing.statistics import AnalyticModel, CountingModel, Gaussian, z_threshold
from fastscore.testing.traffic import no_host_sync

SDES = {"ve": VESDE(0.05, 20.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(50, 1e-3, 0.2)}
CLEAN = Convention("denoised", "time")
LEVELS = torch.randint(256, (3, 2, 4, 4), generator=torch.Generator().manual_seed(0))
X0 = -1 + 2 * LEVELS.double() / 255


def chain_of(sde, steps):
    """alpha^2 and sigma^2 at the times that `steps` steps visit, and at the end."""
    times = torch.linspace(1, sde.sampling_eps, steps, dtype=torch.float64)
    alpha, sigma = sde.marginal(times)
    return torch.cat([alpha, torch.ones(1)]) ** 2, torch.cat([sigma, torch.zeros(1)]) ** 2


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("name", SDES)
def test_an_error_that_is_known(name, variance):
    """A network that is off by 0.003 everywhere: every term has a closed form."""
    sde, c, v = SDES[name], 0.003, 0.4
    steps = 50 if name == "discrete" else 12

    def model(x, label):
        clean = X0 + c
        return torch.cat([clean, torch.full_like(clean, v)], 1) if variance == "learned_range" else clean

    options = {"steps": steps, "variance": variance, "dtype": torch.float64, "convention": CLEAN}
    result = variational_bound(sde, model, LEVELS, data_range=(-1, 1), **options)
    signal, power = chain_of(sde, steps)
    snr = signal[:-1] / power[:-1]
    torch.testing.assert_close(result.xstart_mse, torch.full((3, steps), c**2, dtype=torch.float64))
    torch.testing.assert_close(result.mse, (c**2 * snr).expand(3, -1))
    torch.testing.assert_close(result.distortion, torch.full((3, steps), c * 255 / 2, dtype=torch.float64))
    last = None
    for k in range(steps):
        large = power[k] - signal[k] / signal[k + 1] * power[k + 1]  # of x_t given x_s: b^2
        small = large * power[k + 1] / power[k]
        if k == steps - 1:
            small = last
            large = small if variance == "fixed_large" else large
        ours = {"fixed_small": small, "fixed_large": large, "learned_range": small**0.3 * large**0.7}[variance]
        if k < steps - 1:
            # the mean of q(x_s | x_t, x_0) moves with x_0 by alpha_s b^2 / sigma_t^2
            shift = signal[k + 1].sqrt() * large / power[k] * c
            nats = kl_divergence(Normal(0.0, small.sqrt()), Normal(shift, ours.sqrt()))
            if variance == "fixed_small":
                torch.testing.assert_close(nats, 0.5 * (snr[k + 1] - snr[k]) * c**2)
            nats, last = nats.expand(3), small
        else:
            edges = torch.tensor([1 / 255 - c, -1 / 255 - c], dtype=torch.float64)
            upper, lower = torch.special.ndtr(edges / ours.sqrt())
            upper, lower = torch.where(LEVELS == 255, 1.0, upper), torch.where(LEVELS == 0, 0.0, lower)
            nats = -(upper - lower).log().flatten(1).mean(1)
        torch.testing.assert_close(result.terms[:, k], nats / math.log(2), rtol=1e-7, atol=1e-10)
    prior = kl_divergence(Normal(signal[0].sqrt() * X0, power[0].sqrt()), Normal(0.0, sde.prior_std))
    torch.testing.assert_close(result.prior, prior.flatten(1).mean(1) / math.log(2), rtol=1e-6, atol=1e-12)
    total = result.prior + result.terms.sum(1)
    torch.testing.assert_close(result.bits_per_dim, total)
    # what a receiver has paid before it has the state of a column
    torch.testing.assert_close(result.rate + result.terms.flip(1).cumsum(1).flip(1), total[:, None].expand(-1, steps))
    torch.testing.assert_close(result.rate[:, 0], result.prior)


WIDE = {"data_range": (-4.0, 4.0), "bits": 14}  # levels of 0.0005: as good as continuous


def gaussian(n):
    """Of unequal variances; its draws at levels, and the trace of the posterior's covariance."""
    law = Gaussian(torch.tensor([0.3, -0.5, 0.0]), torch.diag(torch.tensor([0.05, 0.2, 0.4])).double())
    width = 8 / (2**14 - 1)
    levels = ((law.sample(n, seed=1) + 4) / width).round().long()
    return law, levels, width


def exact(law, sde):
    return AnalyticModel(law, lambda label: sde.marginal(label), "denoised")


@pytest.mark.parametrize("name", ["discrete", "ve"])
def test_gaussian_data_has_the_expected_terms(name):
    """With the posterior mean for the clean image, E L_{t-1} is (snr_s - snr_t) / 2 times the posterior's variance."""
    law, levels, _ = gaussian(3000)
    sde, steps = SDES[name], 50
    result = variational_bound(sde, exact(law, sde), levels, steps=steps, convention=CLEAN, seed=3, **WIDE)
    signal, power = chain_of(sde, steps)
    snr = signal[:-1] / power[:-1]
    spread = law.covariance.diag()[:, None]
    posterior = (spread / (1 + spread * snr)).mean(0)
    expected = 0.5 * snr.diff() * posterior[:-1] / math.log(2)
    z = (result.terms[:, :-1] - expected).mean(0) / (result.terms[:, :-1].std(0) / math.sqrt(len(levels)))
    print(f"{name}: largest |z| {float(z.abs().max()):.2f} of {steps - 1}")
    assert float(z.abs().max()) < z_threshold(steps - 1)
    error = (result.xstart_mse - posterior).mean(0) / (result.xstart_mse.std(0) / math.sqrt(len(levels)))
    assert float(error.abs().max()) < z_threshold(steps)
    assert (result.rate.mean(0).diff() > 0).all()


@pytest.mark.parametrize("n", [20, 300])
def test_the_whole_bound_of_gaussian_data(n):
    law, levels, width = gaussian(2000)
    sde, spread = DiscreteVPSDE.linear(n, 0.1 / n, 15 / n, min_log_snr=None), law.covariance.diag()
    bits = variational_bound(sde, exact(law, sde), levels, convention=CLEAN, seed=4, **WIDE).bits_per_dim
    signal, power = chain_of(sde, n)
    snr = signal[:-1] / power[:-1]
    posterior = (spread[:, None] / (1 + spread[:, None] * snr)).mean(0)
    square = (spread + law.mean.double().square()).mean()
    prior = 0.5 * (power[0] - 1 - power[0].log() + signal[0] * square)
    last = (1 - signal[-3] / signal[-2]) * power[-2] / power[-3]  # the variance of the step before the last
    decoder = 0.5 * (2 * math.pi * last).log() + posterior[-1] / (2 * last) - math.log(width)
    expected = (prior + 0.5 * (snr.diff() * posterior[:-1]).sum() + decoder) / math.log(2)
    error = bits.std() / math.sqrt(len(levels))
    entropy = (0.5 * (2 * math.pi * math.e * spread).log2()).mean() - math.log2(width)
    print(f"{n} steps: {bits.mean():.3f} +- {error:.3f}, expected {expected:.3f}, entropy {entropy:.3f}")
    assert abs(float((bits.mean() - expected) / error)) < 4
    assert float(bits.mean() - entropy) > 4 * float(error)


@pytest.mark.parametrize("prediction", ["score", "noise", "v", "edm"])
def test_what_the_network_predicts_does_not_matter(prediction):
    law, levels, _ = gaussian(2)
    sde = SDES["vp"]
    expected = variational_bound(sde, exact(law, sde), levels, steps=5, convention=CLEAN, dtype=torch.float64, **WIDE)

    def model(x, t):
        marginal = sde.marginal(t)
        if prediction != "edm":
            return AnalyticModel(law, lambda label: marginal, prediction)(x, t)
        convention = Convention("edm", "time")
        y = x / convention.input_scale(sde, t)[:, None]
        p, q = convention.coefficients(sde, t, "denoised")
        return (law.denoised(y, *marginal) - p[:, None] * y) / q[:, None]

    convention = Convention(prediction, "time")
    ours = variational_bound(sde, model, levels, steps=5, convention=convention, dtype=torch.float64, **WIDE)
    torch.testing.assert_close(ours.terms, expected.terms, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("bits", "data_range"), [(1, (0, 1)), (3, (-1, 1)), (8, (-1, 1)), (16, (-0.5, 2.0))])
def test_levels_and_what_they_stand_for_are_one(bits, data_range):
    levels = torch.randint(2**bits, (2, 5), generator=torch.Generator().manual_seed(bits))
    x0 = data_range[0] + (data_range[1] - data_range[0]) * levels.double() / (2**bits - 1)
    options = {"data_range": data_range, "bits": bits, "steps": 4, "convention": CLEAN}
    given = variational_bound(SDES["vp"], Smooth(), levels, **options)
    for dtype in (torch.float32, torch.float64):
        data = variational_bound(SDES["vp"], Smooth(), x0.to(dtype), **options)
        torch.testing.assert_close(data.bits_per_dim, given.bits_per_dim, rtol=1e-5, atol=0)
    assert torch.equal(variational_bound(SDES["vp"], Smooth(), x0.float(), **options).terms, given.terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_the_network_is_given(dtype):
    seen = []

    def model(x, label):
        seen.append((x.dtype, label.dtype, label.shape))
        return 0.3 * x

    rounded = Convention("denoised", "rounded_timestep")
    variational_bound(SDES["discrete"], model, LEVELS, data_range=(-1, 1), steps=3, dtype=dtype, convention=rounded)
    variational_bound(SDES["vp"], model, LEVELS, data_range=(-1, 1), steps=3, dtype=dtype, convention=CLEAN)
    assert seen == [(dtype, label, (3,)) for label in [torch.int64] * 3 + [torch.float32] * 3]


def test_clipping():
    far = lambda x, label: torch.full_like(x, 7.0)  # noqa: E731
    options = {"data_range": (-1, 1), "steps": 3, "convention": CLEAN}
    result = variational_bound(SDES["vp"], far, LEVELS, clip=1.0, **options)
    torch.testing.assert_close(result.xstart_mse[:, 0], (1 - X0).square().flatten(1).mean(1))


def test_a_sample_does_not_depend_on_its_batch():
    options = {"data_range": (-1, 1), "steps": 6, "convention": CLEAN}
    whole = variational_bound(SDES["vp"], Smooth(), LEVELS, seed=5, **options)
    some = variational_bound(SDES["vp"], Smooth(), LEVELS[[2, 0]], noise=PhiloxNoise(5, samples=[2, 0]), **options)
    torch.testing.assert_close(some.terms, whole.terms[[2, 0]], rtol=1e-12, atol=0)
    draws = [PhiloxNoise(5).normal((3, 2, 4, 4), draw=k + 1) for k in range(6)]
    alpha, sigma = (value.reshape(-1, 1, 1, 1, 1) for value in SDES["vp"].marginal(whole.t))
    states = (alpha * X0 + sigma * torch.stack(draws)).float()
    guess = torch.stack([Smooth()(x, t.float().expand(3)) for x, t in zip(states, whole.t, strict=True)])
    errors = (X0 - guess.double()).square().flatten(2).mean(2).T
    torch.testing.assert_close(whole.xstart_mse, errors, rtol=1e-6, atol=0)


def test_one_call_per_step_no_dropout_a_bar(capsys):
    model = CountingModel(Smooth()).train()
    timesteps = {"spacing": torch.tensor([40, 20, 7, 1]), "convention": Convention("denoised", "timestep")}
    options = {"data_range": (-1, 1), **timesteps}
    result = variational_bound(SDES["discrete"], model, LEVELS, progress=True, **options)
    assert model.calls == 4
    assert model.training
    assert result.t.tolist() == pytest.approx([0.82, 0.42, 0.16, 0.04])
    assert "4/4" in capsys.readouterr().err
    empty = variational_bound(SDES["discrete"], Smooth(), LEVELS[:0], **options)
    assert empty.bits_per_dim.shape == (0,)
    assert empty.terms.shape == (0, 4)


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_nothing_is_read_on_the_host_between_steps(variance):
    model = Watched((3, 4 if variance == "learned_range" else 2, 4, 4), calls=5)
    model.convention = CLEAN
    with model.region:
        result = variational_bound(SDES["vp"], model, LEVELS, data_range=(-1, 1), steps=5, variance=variance, clip=1.0)
    assert model.calls == 5
    assert result.bits_per_dim.isfinite().all()
    with pytest.raises(Exception, match="read"), no_host_sync():
        float(result.bits_per_dim[0])


@pytest.mark.skipif(not can_index_fake_cuda(), reason="this torch needs a driver to index fake CUDA tensors")
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_on_cuda_tensors(variance, monkeypatch):
    """What is read on the host before the first call, data and path, is made outside."""
    path = [*nodes(SDES["vp"], torch.tensor([1.0, 0.5, 0.1])), CLEAN_NODE]
    chain = chain_steps(SDES["vp"], CLEAN, path, variance, torch.device("cpu"))
    monkeypatch.setattr(bound, "_quantized", lambda x0, *_: (x0.long(), x0.double(), torch.float32))
    monkeypatch.setattr(bound, "level_path", lambda *_, **__: path)
    monkeypatch.setattr(bound, "chain_steps", lambda *a: [ChainStep(*(v.to(a[-1]) for v in step)) for step in chain])
    devices = Devices()
    with FakeTensorMode(allow_non_fake_inputs=True), devices:
        model = lambda x, t: x.tanh().repeat(1, 1 + (variance == "learned_range"), 1) + t[:, None, None]  # noqa: E731
        options = {"data_range": (-1, 1), "variance": variance, "clip": 1.0, "convention": CLEAN}
        result = variational_bound(SDES["vp"], model, torch.empty(4, 3, 2, device="cuda"), **options)
    shapes = {"bits_per_dim": (4,), "prior": (4,), "t": (3,)}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        assert value.device.type == ("cpu" if field.name == "t" else "cuda")
        assert value.shape == shapes.get(field.name, (4, 3))
    assert not any(op.startswith("aten::_local_scalar") for op in devices.called)


BAD = [
    ({"variance": "learned"}, ValueError, "variance must be one of fixed_small, fixed_large, learned_range"),
    ({"bits": 17}, ValueError, "bits must be at most 16, got 17"),
    ({"data_range": (1, -1)}, ValueError, r"data_range\[1\] must be a finite number above 1"),
    ({"steps": 1}, ValueError, "steps must be at least 2"),
    ({"steps": 51}, ValueError, "steps must be at most the number of levels, 50, got 51"),
    ({"spacing": "even"}, ValueError, "spacing must be one of linspace"),
    ({"clip": -1.0}, ValueError, "clip must be a finite number above 0"),
    ({"eps": 1.0}, ValueError, "eps must be a finite number above 0 and below 1"),
    ({"dtype": torch.int32}, TypeError, "dtype must be float32"),
    ({"convention": "noise"}, TypeError, "convention must be a fastscore.Convention, got str"),
    ({"noise": 5}, TypeError, "noise must be PhiloxNoise"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_bad_options_are_named_before_any_work(options, error, words):
    model = CountingModel(Smooth())
    with pytest.raises(error, match=words):
        variational_bound(SDES["discrete"], model, LEVELS, **{"data_range": (-1, 1), **options})
    assert model.calls == 0


@pytest.mark.parametrize(
    ("x0", "error", "words"),
    [
        (X0 + 0.003, ValueError, r"x0 must lie at the 256 levels from -1 to 1, or be the levels, .* 96 in all"),
        (X0 * torch.nan, ValueError, "x0 must lie at the 256 levels"),
        (X0 + 2, ValueError, "x0 must lie at the 256 levels"),
        (LEVELS + 200, ValueError, r"x0 must lie in \[0, 2\^bits\) = \[0, 256\)"),
        (LEVELS > 3, TypeError, "x0 must be a tensor of integers, got torch.bool"),
        ([1, 2], TypeError, "x0 must be a tensor of integers, got list"),
        (torch.tensor(0.0), ValueError, "x0 must have a batch dimension"),
    ],
)
def test_bad_data_is_named_before_any_work(x0, error, words):
    model = CountingModel(Smooth())
    with pytest.raises(error, match=words):
        variational_bound(SDES["discrete"], model, x0, data_range=(-1, 1))
    assert model.calls == 0


def test_bad_models_are_named():
    options = {"data_range": (-1, 1), "steps": 3}
    with pytest.raises(TypeError, match="sde must be a fastscore SDE, got str"):
        variational_bound("vp", Smooth(), LEVELS, **options)
    with pytest.raises(
        ValueError, match=r"variational_bound: sde must reach t = 1, its prior, got one that ends at 0\.5"
    ):
        variational_bound(SDES["vp"].until(0.5), Smooth(), LEVELS, **options)
    with pytest.raises(TypeError, match="model must be callable"):
        variational_bound(SDES["vp"], 3, LEVELS, **options)
    with pytest.raises(ValueError, match=r"with twice the channels of its input.* at variational_bound, t = 1"):
        variational_bound(SDES["vp"], Smooth(), LEVELS, variance="learned_range", **options)
    broken = itertools.count()
    with pytest.raises(NonFiniteError, match=r"the term of t = 0\.5005 is not finite"):
        variational_bound(SDES["vp"], lambda x, t: x / (next(broken) != 1), LEVELS, convention=CLEAN, **options)

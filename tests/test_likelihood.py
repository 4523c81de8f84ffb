"""Log-likelihoods against closed forms and against the published code, and bits per dimension."""

import dataclasses
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastscore
from fastscore import (
    VESDE,
    VPSDE,
    Convention,
    DiscreteVPSDE,
    NonFiniteError,
    PhiloxNoise,
    ReplayNoise,
    SubVPSDE,
    bits_per_dim,
    dequantize,
    log_likelihood,
)
from fastscore.likelihood.bits import in_bits
from fastscore.samplers import RowNetwork
from fastscore.testing.fake_cuda import Devices, can_index_fake_cuda
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import PeerDrift
from fastscore.testing.statistics import (
    AnalyticModel,
    CountingModel,
    Gaussian,
    Mixture,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)
from fastscore.testing.traffic import no_host_sync

FOLDER = Path(__file__).parent / "golden" / "samplers"
CASES = load_cases(FOLDER, "score_sde_likelihood")
EPS = 1e-5
SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
PERTURB = {"ve": ve_perturbation, "vp": vp_perturbation(), "subvp": vp_perturbation(subvp=True)}


def gaussian(*shape):
    """Correlated, off center, of unequal variances."""
    size = math.prod(shape)
    generator = torch.Generator().manual_seed(size)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    covariance = basis @ torch.linspace(0.02, 0.5, size, dtype=torch.float64).diag() @ basis.T
    return Gaussian(0.5 * torch.randn(shape, dtype=torch.float64, generator=generator), covariance)


def mixture(*shape):
    generator = torch.Generator().manual_seed(math.prod(shape))
    means = 0.2 * torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    return Mixture(means, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.25)


DATA = {
    "gaussian-2": gaussian_2d(),
    "gaussian-24": gaussian(6, 2, 2),
    "mixture-2": mixture_2d(),
    "mixture-192": mixture(3, 8, 8),
}


def network(name, data):
    return AnalyticModel(data, PERTURB[name], "score" if name == "ve" else "noise")


def log_density(name, data, x, t):
    """Of the data perturbed to time t, in nats, float64 (B,)."""
    label = torch.tensor(t if name != "ve" else 0.01 * (50 / 0.01) ** t, dtype=torch.float64)
    alpha, sigma = PERTURB[name](label if name == "ve" else 999 * label)
    x = x.double()
    if isinstance(data, Gaussian):
        size = data.mean.numel()
        covariance = alpha**2 * data.covariance + sigma**2 * torch.eye(size, dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(alpha * data.mean.flatten(), covariance)
        return law.log_prob(x.flatten(1))
    variance = alpha**2 * data.std**2 + sigma**2
    squares = (x.flatten(1)[:, None] - alpha * data.means.double().flatten(1)).square().sum(-1)
    size = math.prod(data.shape)
    logs = data.weights.double().log() - squares / (2 * variance) - size / 2 * torch.log(2 * math.pi * variance)
    return torch.logsumexp(logs, 1)


def change(name, data, x, latent):
    """What the integral of the divergence must be: the prior of an SDE is not quite the law at t = 1."""
    return log_density(name, data, x, EPS) - log_density(name, data, latent, 1.0)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", SDES)
def test_the_closed_form_with_the_exact_trace(name, data):
    law = DATA[data]
    size, mode = math.prod(law.shape), "jvp" if data == "mixture-2" else "vjp"
    x = law.sample(3, seed=1)
    result = log_likelihood(SDES[name], network(name, law), x, method="exact", mode=mode, rtol=1e-6, atol=1e-6)
    error = float((result.log_change - change(name, law, x, result.latent)).abs().max()) / size
    print(f"{name} {data}: {error:.1e} nats per dimension, nfe {result.nfe.tolist()}")
    assert error < 1e-4
    prior = SDES[name].prior_log_prob(result.latent)
    torch.testing.assert_close(result.log_prior, prior)
    torch.testing.assert_close(result.log_likelihood, prior + result.log_change)
    assert (result.standard_error == 0).all()


@pytest.mark.parametrize("name", SDES)
def test_the_whole_value_where_the_prior_is_right(name):
    """Centered, so that what is left of the mean at t = 1 does not count; VE: with little variance beside 50^2."""
    law = Gaussian(torch.zeros(4, 1, 1), torch.diag(torch.linspace(0.05, 0.2, 4, dtype=torch.float64)))
    x = law.sample(4, seed=2)
    result = log_likelihood(SDES[name], network(name, law), x, method="exact", rtol=1e-7, atol=1e-7)
    error = (result.log_likelihood - log_density(name, law, x, EPS)).abs().max() / 4
    assert float(error) < 2e-4
    # the flow of a Gaussian scales each axis by the ratio of its standard deviations
    axes = [law.covariance.diag() * a**2 + s**2 for a, s in (SDES[name].marginal(t) for t in (EPS, 1.0))]
    torch.testing.assert_close(result.latent.flatten(1), x.flatten(1) * (axes[1] / axes[0]).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("data", "method", "mode", "kind", "probes"),
    [
        ("gaussian-24", "hutchinson", "vjp", "rademacher", 64),
        ("mixture-192", "hutchinson", "jvp", "gaussian", 32),
        ("gaussian-24", "hutch++", "vjp", "gaussian", 6),
    ],
)
@pytest.mark.parametrize("name", SDES)
def test_probes_agree_within_their_standard_error(name, data, method, mode, kind, probes):
    law = DATA[data]
    x = law.sample(4, seed=3)
    options = {"method": method, "mode": mode, "kind": kind, "probes": probes, "seed": 1}
    result = log_likelihood(SDES[name], network(name, law), x, **options)
    z = (result.log_change - change(name, law, x, result.latent)) / result.standard_error
    print(f"{name} {data} {method}: z {[round(v, 2) for v in z.tolist()]}, error {result.standard_error.tolist()}")
    assert float(z.abs().max()) < (3 if probes > 6 else 5)  # 6 probes: Student's t of 5 degrees, 5 is 3.0 sigma in it
    assert float(z.abs().max()) > 0.05


@pytest.mark.parametrize("name", SDES)
def test_the_error_falls_as_one_over_the_root_of_k(name):
    """Against the exact trace on the same steps, so that nothing but the probes differs."""
    law = gaussian_2d()
    x = law.sample(400, seed=4)
    options = {"solver": "heun", "steps": 12, "eps": 1e-2}
    exact = log_likelihood(SDES[name], network(name, law), x, method="exact", **options).log_likelihood
    errors, stated = [], []
    for k in (4, 16, 64):
        result = log_likelihood(SDES[name], network(name, law), x, probes=k, seed=k, **options)
        errors.append(float((result.log_likelihood - exact).square().mean().sqrt()))
        stated.append(float(result.standard_error.square().mean().sqrt()))
    print(f"{name}: errors {errors}, stated {stated}")
    for i in range(3):
        assert errors[i] == pytest.approx(stated[i], rel=0.15)  # 400 samples: 3.5% standard deviation
    for i in range(2):
        assert errors[i] / errors[i + 1] == pytest.approx(2, rel=0.2)


@pytest.mark.parametrize(("solver", "order", "calls"), [("euler", 1, 1), ("heun", 2, 2), ("rk4", 4, 4)])
def test_fixed_steps_have_their_order_and_their_number_of_calls(solver, order, calls):
    law = mixture_2d()
    x = law.sample(8, seed=5)
    truth = log_likelihood(SDES["vp"], network("vp", law), x, method="exact", rtol=1e-10, atol=1e-10)
    errors = []
    for steps in (40, 80, 160):
        model = CountingModel(network("vp", law))
        options = {"solver": solver, "steps": steps, "spacing": "quadratic"}
        result = log_likelihood(SDES["vp"], model, x, method="exact", **options)
        assert model.calls == steps * calls
        assert result.nfe.tolist() == [steps * calls] * 8
        errors.append(float((result.log_likelihood - truth.log_likelihood).abs().mean()))
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    print(f"{solver}: errors {errors}, orders {orders}")
    assert orders[1] == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize(("mode", "probes"), [("vjp", 1), ("vjp", 8), ("jvp", 1), ("jvp", 8)])
def test_one_network_call_per_evaluation(mode, probes, norm):
    """And no call for samples that have arrived."""
    law = mixture_2d()
    model = CountingModel(network("subvp", law))
    x = law.sample(5, seed=6)
    result = log_likelihood(
        SDES["subvp"], model, x, mode=mode, probes=probes, norm=norm, rtol=1e-3, atol=1e-3, eps=1e-3
    )
    assert model.calls == int(result.nfe.max())
    assert model.samples == int(result.nfe.sum())
    assert (result.nfe.unique().numel() > 1) == (norm == "sample")


def test_a_sample_does_not_depend_on_its_batch():
    law = mixture_2d()
    x = law.sample(6, seed=7)
    options = {"probes": 3, "rtol": 1e-4, "atol": 1e-4}
    whole = log_likelihood(SDES["vp"], network("vp", law), x, seed=9, **options)
    pick = [4, 1]
    some = log_likelihood(SDES["vp"], network("vp", law), x[pick], noise=PhiloxNoise(9, samples=pick), **options)
    torch.testing.assert_close(some.log_likelihood, whole.log_likelihood[pick], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(some.standard_error, whole.standard_error[pick], rtol=1e-9, atol=1e-9)
    assert torch.equal(some.nfe, whole.nfe[pick])
    # probes that are held leave with their samples, too
    noise = PhiloxNoise(9)
    held = ReplayNoise([noise.rademacher(x.shape, dtype=x.dtype, draw=k) for k in (1, 2, 3)])
    replayed = log_likelihood(SDES["vp"], network("vp", law), x, noise=held, **options)
    torch.testing.assert_close(replayed.log_likelihood, whole.log_likelihood, rtol=1e-9, atol=1e-9)
    with fastscore.backend("reference"):
        plain = log_likelihood(SDES["vp"], network("vp", law), x, seed=9, **options)
    torch.testing.assert_close(plain.log_likelihood, whole.log_likelihood, rtol=1e-9, atol=1e-9)


class Classes(RowNetwork):
    """A network that is exact for another law in every row of the batch."""

    def __init__(self, laws):
        super().__init__()
        self.laws = laws

    def select(self, rows):
        return Classes([self.laws[int(row)] for row in rows])

    def forward(self, x, label):
        outputs = [network("vp", law)(x[i : i + 1], label[i : i + 1]) for i, law in enumerate(self.laws)]
        return torch.cat(outputs)


def test_every_sample_keeps_its_class():
    laws = [gaussian_2d(), mixture_2d(), gaussian(2, 1, 1)]
    x = torch.cat([law.sample(1, seed=11) for law in laws])
    options = {"method": "exact", "rtol": 1e-5, "atol": 1e-5}
    result = log_likelihood(SDES["vp"], Classes(laws), x, **options)
    assert result.nfe.unique().numel() > 1
    for i, law in enumerate(laws):
        alone = log_likelihood(SDES["vp"], network("vp", law), x[i : i + 1], **options)
        torch.testing.assert_close(result.log_likelihood[i], alone.log_likelihood[0], rtol=1e-9, atol=1e-9)


class EDM(torch.nn.Module):
    """The raw network of a preconditioned denoiser whose denoiser is exact, for labels log(sigma) / 4."""

    def __init__(self, data, sigma_data=0.5):
        super().__init__()
        self.data, self.sigma_data = data, sigma_data

    def forward(self, x, label):
        sigma = (4 * label.double()).exp()
        shaped = sigma.reshape(-1, *[1] * (x.ndim - 1))
        power = shaped**2 + self.sigma_data**2
        y = x.double() * power.sqrt()
        denoised = self.data.denoised(y, torch.ones_like(sigma), sigma)
        skip, out = self.sigma_data**2 / power, shaped * self.sigma_data / power.sqrt()
        return ((denoised - skip * y) / out).to(x.dtype)


@pytest.mark.parametrize("prediction", ["score", "denoised", "v", "edm"])
def test_what_the_network_predicts_does_not_matter(prediction):
    law = mixture_2d()
    x = law.sample(3, seed=8)
    options = {"method": "exact", "rtol": 1e-6, "atol": 1e-6, "eps": 1e-3}
    expected = log_likelihood(SDES["vp"], network("vp", law), x, **options).log_likelihood
    if prediction == "edm":
        model, convention = EDM(law), Convention("edm", "log_sigma")
    else:
        model, convention = AnalyticModel(law, PERTURB["vp"], prediction), Convention(prediction, "scaled_time")
    ours = log_likelihood(SDES["vp"], model, x, convention=convention, **options).log_likelihood
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_discrete_levels_and_their_integer_labels():
    seen = []
    sde = DiscreteVPSDE.linear(200, 5e-4, 0.1)

    def model(x, label):
        seen.append(label.dtype)
        return x * 0.3

    convention = Convention("noise", "rounded_timestep")
    x = torch.ones(2, 3, dtype=torch.float64)
    result = log_likelihood(sde, model, x, solver="euler", steps=10, convention=convention)
    assert set(seen) == {torch.int64}
    assert result.log_likelihood.isfinite().all()


def test_float32_data_and_the_mode_of_the_network():
    law = DATA["mixture-192"]
    model = network("vp", law).train()
    inner, training = model.forward, []
    model.forward = lambda x, label: (training.append((model.training, x.dtype, label.dtype)), inner(x, label))[1]
    x = law.sample(2, seed=9)
    double = log_likelihood(SDES["vp"], network("vp", law), x, probes=2)
    single = log_likelihood(SDES["vp"], model, x.float().to(memory_format=torch.channels_last), probes=2)
    assert set(training) == {(False, torch.float32, torch.float32)}
    assert model.training
    assert single.latent.dtype == torch.float32
    assert single.log_likelihood.dtype == torch.float64
    torch.testing.assert_close(single.log_likelihood, double.log_likelihood, rtol=0, atol=192 * 1e-4)


class Watched(torch.nn.Module):
    """Exact, and a value that is read on the host between the first call and the last, number `calls`, raises."""

    def __init__(self, inner, calls):
        super().__init__()
        self.inner, self.left, self.calls, self.region = inner, calls, calls, ExitStack()

    def forward(self, x, label):
        if self.left == self.calls:
            self.region.enter_context(no_host_sync())
        self.left -= 1
        if self.left == 0:
            self.region.close()
        return self.inner(x, label)


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("method", ["hutchinson", "exact", "hutch++"])
def test_fixed_steps_read_nothing_on_the_host(method, mode):
    law = mixture_2d()
    calls = 8 * (2 if (method, mode) == ("hutch++", "jvp") else 1)
    model = Watched(network("vp", law), calls)
    options = {"method": method, "mode": mode, "probes": 2, "solver": "rk4", "steps": 2}
    result = log_likelihood(SDES["vp"], model, law.sample(3), **options)
    assert model.left == 0
    assert result.log_likelihood.isfinite().all()


@pytest.mark.skipif(not can_index_fake_cuda(), reason="this torch needs a driver to index fake CUDA tensors")
@pytest.mark.parametrize("method", ["hutchinson", "exact", "hutch++"])
@pytest.mark.parametrize("solver", ["heun", "rk4"])
def test_fixed_steps_on_cuda_tensors(solver, method):
    """In forward mode: the backward pass of torch asks for a driver."""
    options = {"solver": solver, "steps": 3, "method": method, "probes": 2, "mode": "jvp"}
    options["spacing"] = "quadratic"  # the default reads its tables, which are on the host, but fakes here
    devices = Devices()
    with FakeTensorMode(allow_non_fake_inputs=True), devices:
        x = torch.empty(4, 3, 2, 2, device="cuda")
        model = lambda x, label: x.tanh() + label.reshape(-1, 1, 1, 1)  # noqa: E731
        result = log_likelihood(SDES["vp"], model, x, convention=Convention("noise", "scaled_time"), **options)
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        assert value.device.type == "cuda"
        assert value.shape == (x.shape if field.name == "latent" else (4,))
    assert "fastscore::linear_step" in devices.called
    assert not any(op.startswith("aten::_local_scalar") for op in devices.called)


def test_a_bundled_network_has_the_same_value_by_both_modes():
    """Through the fused ops: eps . (J eps) is one number, however it is made."""
    model = fastscore.models.load("mnist32")
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).mul(0.3).clamp(-1, 1)
    sde = VPSDE()
    options = {"solver": "heun", "steps": 2, "probes": 2, "eps": 1e-2}
    reverse, forward = (log_likelihood(sde, model, x, mode=mode, **options) for mode in ("vjp", "jvp"))
    torch.testing.assert_close(forward.latent, reverse.latent, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(forward.log_change, reverse.log_change, rtol=1e-4, atol=1024 * 1e-5)
    torch.testing.assert_close(forward.standard_error, reverse.standard_error, rtol=1e-2, atol=1024 * 1e-5)


def test_samples_that_do_not_arrive_have_no_likelihood():
    law = mixture_2d()
    with pytest.warns(RuntimeWarning, match="log_likelihood: some samples have not reached t = 1 within 3 trials"):
        result = log_likelihood(SDES["vp"], network("vp", law), law.sample(2), max_steps=3)
    assert result.log_likelihood.isnan().all()
    with pytest.raises(NonFiniteError, match="log_likelihood: the error of trial"):
        log_likelihood(SDES["vp"], lambda x, label: x / 0, law.sample(2))
    empty = log_likelihood(SDES["vp"], network("vp", law), law.sample(2)[:0])
    assert empty.log_likelihood.shape == (0,)


def replayed(case, rtol=None, drift=None):
    """What the published run returned, by `log_likelihood` with its probe; and its evaluations."""
    args, sde_args = case.args, {k: v for k, v in case.args["sde"].items() if k not in ("cls", "N", "T")}
    sde = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}[args["sde"]["cls"]](**sde_args)
    model, convention = golden_model(case, load_mixture(FOLDER)), None
    if drift is not None:
        model, convention = drift(sde, model), Convention("score", "time")
    rtol, atol = (rtol, rtol) if rtol else (args["rtol"], args["atol"])
    noise = ReplayNoise([case.tensors["epsilon"].double()])
    options = {"norm": "batch", "rtol": rtol, "atol": atol, "eps": args["eps"], "convention": convention}
    result = log_likelihood(sde, model, case.tensors["data"].double(), noise=noise, **options)
    # published: 7 - inverse_scaler(-1) is added
    data_range = (0.0, 1.0) if args["inverse_scaler"] == "identity" else (-1.0, 1.0)
    values = {
        "bpd": in_bits(result.log_likelihood, 192, data_range, 8),
        "z": result.latent,
        "delta_logp": result.log_change,
        "prior_logp": result.log_prior,
    }
    return values, result.nfe.tolist()


def limit_of(case, name):
    """1e-5 relative, or three times the case's own float32 noise where that is larger."""
    return max(1e-5 * float(case.tensors[name].abs().max()), 3 * case.sensitivity[name])


def rounding_decides(case):
    """The first step of VP is so smooth that at 1e-3 its error estimate is the rounding of the float32 drift.

    scipy on the published formulas goes another way there, too, and ends 2e-3 from the published latent.
    """
    return case.args["rtol"] == 1e-3 and case.args["sde"]["cls"] == "VPSDE"


@pytest.mark.parametrize("case", [case for case in CASES if not rounding_decides(case)], ids=str)
def test_the_published_run(case):
    """The recorded probe, a float64 state, and the float32 drift of the published code."""
    values, nfe = replayed(case, drift=PeerDrift)
    assert nfe == [case.scalars["nfe"]] * 3
    for name, value in values.items():
        error, limit = float((value - case.tensors[name]).abs().max()), limit_of(case, name)
        print(f"{case.id} {name}: {error:.2e} of {limit:.2e}")
        assert error <= limit, name


@pytest.mark.parametrize("case", [case for case in CASES if rounding_decides(case)], ids=str)
def test_as_near_the_exact_value_as_the_published_run(case):
    """What cannot be replayed must not be farther from the solution of the ODE than what was published."""
    values, nfe = replayed(case)
    exact, _ = replayed(case, rtol=1e-9)
    assert nfe == [case.scalars["nfe"]] * 3
    for name, value in values.items():
        ours, theirs = (float((y - exact[name]).abs().max()) for y in (value, case.tensors[name]))
        print(f"{case.id} {name}: off by {ours:.2e}, the published run by {theirs:.2e}")
        assert ours <= max(1.2 * theirs, limit_of(case, name)), name


def test_the_two_tests_above_cover_every_case():
    assert len(CASES) == 8
    assert sum(map(rounding_decides, CASES)) == 1


@pytest.mark.parametrize(
    ("data_range", "bits", "offset"), [((-1, 1), 8, 7), ((0, 1), 8, 8), ((0.0, 256.0), 8, 0), ((-1, 1), 5, 4)]
)
def test_bits_per_dim_counts_the_width_of_a_level(data_range, bits, offset):
    law = mixture_2d()
    low, high = data_range
    x = law.sample(4, seed=10).clamp(low, high)
    options = {"probes": 4, "seed": 2, "rtol": 1e-3, "atol": 1e-3}
    result = bits_per_dim(SDES["vp"], network("vp", law), x, data_range=data_range, bits=bits, **options)
    plain = log_likelihood(SDES["vp"], network("vp", law), x, **options)
    assert torch.equal(result.log_likelihood, plain.log_likelihood)
    torch.testing.assert_close(result.bits_per_dim, -plain.log_likelihood / (2 * math.log(2)) + offset)
    torch.testing.assert_close(result.bits_standard_error, plain.standard_error / (2 * math.log(2)))


def test_levels_are_dequantized_by_draw_0():
    """The code length of levels under a broad Gaussian is that of its probability mass, on average over u."""
    law = Gaussian(torch.zeros(2, 1, 1), 0.04 * torch.eye(2, dtype=torch.float64))
    levels = torch.tensor([[100, 140], [128, 90]], dtype=torch.uint8).reshape(2, 2, 1, 1)
    options = {"method": "exact", "rtol": 1e-6, "atol": 1e-6}
    result = bits_per_dim(
        SDES["vp"], network("vp", law), levels, data_range=(-1, 1), dtype=torch.float64, seed=3, **options
    )
    x = dequantize(levels, data_range=(-1, 1), dtype=torch.float64, seed=3)
    given = bits_per_dim(SDES["vp"], network("vp", law), x, data_range=(-1, 1), **options)
    assert torch.equal(result.bits_per_dim, given.bits_per_dim)
    edges = -1 + 2 * (levels.double().flatten(1)[..., None] + torch.tensor([0.0, 1.0])) / 256
    mass = torch.special.ndtr(edges / 0.2).diff(dim=-1).log2().sum((1, 2))
    # a density that changes by up to 3% over a level
    torch.testing.assert_close(result.bits_per_dim, -mass / 2, rtol=0, atol=0.03)


@pytest.mark.parametrize("bits", [1, 8, 12])
@pytest.mark.parametrize("data_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_dequantized_data_is_uniform_within_its_level(data_range, bits):
    low, high = data_range
    levels = torch.randint(2**bits, (50, 400), generator=torch.Generator().manual_seed(bits))
    x = dequantize(levels, data_range=data_range, bits=bits, dtype=torch.float64, seed=1)
    u = (x - low) / (high - low) * 2**bits - levels
    assert 0 <= float(u.min()) < 1e-3
    assert 0.999 < float(u.max()) <= 1
    count = u.numel()
    assert float(u.mean() - 0.5) == pytest.approx(0, abs=4 * (1 / 12 / count) ** 0.5)
    assert float(u.square().mean() - 1 / 3) == pytest.approx(0, abs=4 * (4 / 45 / count) ** 0.5)
    some = dequantize(
        levels[7:9], data_range=data_range, bits=bits, dtype=torch.float64, noise=PhiloxNoise(1, samples=[7, 8])
    )
    assert torch.equal(some, x[7:9])


BAD = [
    ({"solver": "rk23"}, ValueError, "solver must be one of rk45, euler, heun, rk4, got 'rk23'"),
    ({"solver": "heun"}, ValueError, "steps must be given for solver='heun', got None"),
    ({"steps": 10}, ValueError, "steps must be None for solver='rk45', got 10"),
    ({"solver": "heun", "steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"solver": "heun", "steps": 5, "spacing": "even"}, ValueError, "spacing must be one of linear"),
    ({"norm": "max"}, ValueError, "norm must be one of sample, batch"),
    ({"rtol": -1.0}, ValueError, "rtol must be"),
    ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
    ({"eps": 1.0}, ValueError, "eps must be a finite number above 0 and below 1"),
    ({"method": "trace"}, ValueError, "method must be one of hutchinson, exact"),
    ({"mode": "fd"}, ValueError, "mode must be one of vjp, jvp"),
    ({"probes": 0}, ValueError, "probes must be at least 1, got 0"),
    ({"kind": "uniform"}, ValueError, "kind must be one of rademacher, gaussian"),
    ({"convention": "noise"}, TypeError, "convention must be a fastscore.Convention, got str"),
    ({"noise": 5}, TypeError, "noise must be PhiloxNoise"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD)
def test_bad_options_are_named_before_any_work(options, error, words):
    model = CountingModel(network("vp", mixture_2d()))
    with pytest.raises(error, match=words):
        log_likelihood(SDES["vp"], model, mixture_2d().sample(2), **options)
    assert model.calls == 0


def test_bad_models_and_data_are_named():
    x = mixture_2d().sample(2)
    with pytest.raises(TypeError, match="sde must be a fastscore SDE, got str"):
        log_likelihood("vp", network("vp", mixture_2d()), x)
    with pytest.raises(TypeError, match="model must be callable"):
        log_likelihood(SDES["vp"], 3, x)
    with pytest.raises(TypeError, match="x must be float32"):
        log_likelihood(SDES["vp"], network("vp", mixture_2d()), x.long())
    with pytest.raises(ValueError, match=r"model must return a tensor like x, \(2, 2, 1, 1\)"):
        log_likelihood(SDES["vp"], lambda x, label: x[:, :1], x)


@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        (torch.full((1, 2), 1.5), {}, ValueError, r"x must lie in data_range, \[-1, 1\], got 1.5 to 1.5, outside at 2"),
        (torch.full((1, 2), math.nan), {}, ValueError, "x must lie in data_range"),
        (torch.full((1, 2), 256), {}, ValueError, r"levels must lie in \[0, 2\^bits\) = \[0, 256\), got 256 to 256"),
        (torch.full((1, 2), -1), {}, ValueError, "levels must lie in"),
        (torch.ones(1, 2, dtype=torch.bool), {}, TypeError, "levels must be a tensor of integers, got torch.bool"),
        ([1, 2], {}, TypeError, "x must be a tensor, got list"),
        (torch.ones(1, 2), {"bits": 0}, ValueError, "bits must be at least 1, got 0"),
        (torch.ones(1, 2), {"bits": 17}, ValueError, "bits must be at most 16, got 17"),
        (torch.ones(1, 2), {"data_range": (1, 1)}, ValueError, r"data_range\[1\] must be a finite number above 1"),
        (torch.ones(1, 2), {"data_range": 1}, ValueError, r"data_range must be a pair \(low, high\), got 1"),
    ],
)
def test_bad_data_for_bits_per_dim_is_named(x, options, error, words):
    model = CountingModel(network("vp", mixture_2d()))
    with pytest.raises(error, match=words):
        bits_per_dim(SDES["vp"], model, x, **{"data_range": (-1, 1), **options})
    assert model.calls == 0

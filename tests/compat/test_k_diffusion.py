"""compat.k_diffusion: its functions beside the originals under one torch seed, recorded runs, noise, errors."""

import inspect
import math
from pathlib import Path

import pytest
import torch

from fastscore import NonFiniteError
from fastscore.compat import k_diffusion as compat
from fastscore.noise import PhiloxNoise
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import Watched
from fastscore.testing.peers import k_diffusion_sampling
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = [case for case in load_cases(FOLDER, "k", "k.") if "s_churn" not in case.args]  # churn has no recording
CHURN = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 10.0, "s_noise": 1.1}
ON_LEVELS = [
    ("sample_euler", {}),
    ("sample_euler", CHURN),
    ("sample_heun", {}),
    ("sample_heun", CHURN),
    ("sample_dpm_2", {}),
    ("sample_dpm_2", {"s_churn": 30.0, "s_tmin": 0.05}),
    ("sample_lms", {}),
    ("sample_lms", {"order": 2}),
    ("sample_dpmpp_2m", {}),
    ("sample_euler_ancestral", {}),
    ("sample_euler_ancestral", {"eta": 0.0}),
    ("sample_euler_ancestral", {"eta": 2.0, "s_noise": 0.9}),
    ("sample_dpm_2_ancestral", {}),
    ("sample_dpm_2_ancestral", {"eta": 0.6, "s_noise": 1.1}),
    ("sample_dpmpp_2s_ancestral", {}),
    ("sample_dpmpp_2s_ancestral", {"eta": 0.6, "s_noise": 1.1}),
]
TREES = [
    ("sample_dpmpp_sde", {"r": 0.4, "eta": 0.7, "s_noise": 1.1}),
    ("sample_dpmpp_2m_sde", {"eta": 0.7, "s_noise": 1.1}),
    ("sample_dpmpp_2m_sde", {"solver_type": "heun"}),
    ("sample_dpmpp_3m_sde", {"eta": 0.7, "s_noise": 1.1}),
]


@pytest.fixture(scope="module")
def peer():
    return k_diffusion_sampling()


def denoiser():
    return AnalyticModel(mixture_2d(), ve_perturbation, "denoised")


def start(dtype=torch.float32, sigma=20.0):
    return sigma * torch.randn(4, 2, 1, 1, dtype=dtype, generator=torch.Generator().manual_seed(0))


def seeded_run(function, *args, **options):
    """Result, what the callback was told, and what torch's generator draws next."""
    told = []
    torch.manual_seed(3)
    result = function(*args, callback=told.append, disable=True, **options)
    return result, told, torch.rand(4)


def assert_told_the_same(told, expected, atol):
    assert len(told) == len(expected)
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            given, wanted = torch.as_tensor(ours[name]), torch.as_tensor(value)
            assert given.shape == wanted.shape, name
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(given.double(), wanted.double(), rtol=0, atol=atol * scale, msg=name)


@pytest.mark.parametrize("name", compat.__all__)
def test_signatures_are_the_same(peer, name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters.values() for module in (compat, peer))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
@pytest.mark.parametrize(("name", "options"), ON_LEVELS)
def test_equals_the_original_under_one_seed(peer, name, options, dtype, atol):
    """To the last level and to 0: the samples, what callbacks are told, and what is drawn afterwards."""
    sigmas = peer.get_sigmas_karras(7, 0.05, 20.0).to(dtype)
    for levels in (sigmas, sigmas[:-1], sigmas[-2:]):
        x = start(dtype, float(levels[0]))
        expected, theirs, after = seeded_run(getattr(peer, name), denoiser(), x, levels, **options)
        result, ours, next_drawn = seeded_run(getattr(compat, name), denoiser(), x, levels, **options)
        torch.testing.assert_close(result, expected, rtol=0, atol=atol)
        assert torch.equal(next_drawn, after)
        assert_told_the_same(ours, theirs, atol)


def test_bounds_of_churn_are_compared_in_the_dtype_of_the_levels(peer):
    """In float32, 0.1 lies above 0.1 in float64, and 0.01 below."""
    for dtype in (torch.float32, torch.float64):
        x, sigmas = start(dtype), torch.tensor([20.0, 1.0, 0.1, 0.01, 0.001, 0.0], dtype=dtype)
        options = {"s_churn": 2.0, "s_tmin": 0.01, "s_tmax": 0.1}
        expected, theirs, _ = seeded_run(peer.sample_euler, denoiser(), x, sigmas, **options)
        result, ours, _ = seeded_run(compat.sample_euler, denoiser(), x, sigmas, **options)
        assert [told["sigma_hat"] > told["sigma"] for told in theirs] == [False, False, True, True, False]
        assert_told_the_same(ours, theirs, 1e-5)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_noise_follows_the_layout_of_the_state(peer):
    """torch draws in another order into another layout."""
    x = 20 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    sigmas = peer.get_sigmas_karras(3, 0.1, 20.0)

    def network(x, sigma):
        return torch.tanh(x / (1 + sigma[:, None, None, None]))

    for name, options in (("sample_euler", {"s_churn": 1.0}), ("sample_euler_ancestral", {})):
        expected = seeded_run(getattr(peer, name), network, x, sigmas, **options)[0]
        result = seeded_run(getattr(compat, name), network, x, sigmas, **options)[0]
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)


class Sampler:
    """A noise sampler that remembers what it was asked."""

    def __init__(self, like):
        self.like, self.asked, self.generator = like, [], torch.Generator().manual_seed(1)

    def __call__(self, sigma, sigma_next):
        self.asked.append((sigma, sigma_next))
        return torch.randn(self.like.shape, dtype=self.like.dtype, generator=self.generator)


NOISY = [case for case in ON_LEVELS if "ancestral" in case[0]] + TREES + [("sample_dpmpp_2m_sde", {"eta": 0.0})]


@pytest.mark.parametrize(("name", "options"), NOISY)
def test_noise_sampler_is_honored(peer, name, options):
    sigmas, x = peer.get_sigmas_karras(6, 0.05, 20.0).double(), start(torch.float64)
    ours, theirs = Sampler(x), Sampler(x)
    expected, told, _ = seeded_run(getattr(peer, name), denoiser(), x, sigmas, noise_sampler=theirs, **options)
    result, heard, _ = seeded_run(getattr(compat, name), denoiser(), x, sigmas, noise_sampler=ours, **options)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    assert_told_the_same(heard, told, 1e-11)
    assert len(ours.asked) == len(theirs.asked)
    for given, wanted in zip(ours.asked, theirs.asked, strict=True):
        torch.testing.assert_close(torch.stack(given), torch.stack(wanted), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "options"), [(3, {}), (11, {}), (12, {}), (13, {"eta": 0.6, "s_noise": 1.2})])
def test_dpm_fast(peer, n, options, dtype):
    x = start(dtype)
    arguments = denoiser(), x, 0.1, 20.0, n
    ours, theirs = Sampler(x), Sampler(x)
    expected = peer.sample_dpm_fast(*arguments, disable=True, noise_sampler=theirs, **options)
    result = compat.sample_dpm_fast(*arguments, disable=True, noise_sampler=ours, **options)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)  # the peer's levels are float32
    asked, wanted = (torch.tensor(sampler.asked, dtype=torch.float64) for sampler in (ours, theirs))
    torch.testing.assert_close(asked, wanted, rtol=1e-6, atol=0)
    expected, theirs, after = seeded_run(peer.sample_dpm_fast, *arguments, **options)
    result, ours, next_drawn = seeded_run(compat.sample_dpm_fast, *arguments, **options)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert torch.equal(next_drawn, after)
    assert_told_the_same(ours, theirs, 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"order": 2, "rtol": 0.01, "atol": 1e-3},
        {"h_init": 1.5, "rtol": 0.01},
        {"h_init": 1.5, "pcoeff": 0.2, "icoeff": 0.7},
    ],
)
def test_dpm_adaptive(peer, options):
    """Steps long enough that their errors are not rounding."""
    x = start(torch.float64)
    told = [], []
    runs = []
    for module, list_of in zip((peer, compat), told, strict=True):
        torch.manual_seed(3)
        result, info = module.sample_dpm_adaptive(
            denoiser(), x, 0.05, 20.0, callback=list_of.append, disable=True, return_info=True, **options
        )
        runs.append((result, info, torch.rand(4)))
    (expected, theirs, after), (result, ours, next_drawn) = runs
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)  # the peer's tolerances and levels are float32
    assert theirs["n_reject"] > 0
    assert ours == theirs | {"nfe": theirs["nfe"] - theirs["n_reject"]}
    assert torch.equal(next_drawn, after)
    assert len(told[0]) == len(told[1])
    for mine, other in zip(told[1], told[0], strict=True):
        assert mine.keys() == other.keys() - {"h"}
        assert mine["i"] == other["i"]
        assert mine["n_accept"] == other["n_accept"]
        for name in ("x", "denoised", "t", "t_up", "sigma", "sigma_hat", "error"):
            largest = max(1.0, float(other[name].abs().max()))
            assert float((mine[name].double() - other[name].double()).abs().max()) < 1e-3 * largest, name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recorded_runs(case):
    args, options = case.args, {}
    function = getattr(compat, case.function.split(".")[-1])
    for name in inspect.signature(function).parameters:
        if name in args and name not in ("sigma_min", "sigma_max"):
            options[name] = args[name]
    if case.function.endswith("adaptive") and "eta" in args:
        with pytest.raises(ValueError, match="eta must be 0"):
            function(golden_model(case, load_mixture(FOLDER)), case.tensors["x"], 0.1, 1.0, disable=True, **options)
        return
    if "noise" in case.meaning:
        recording = iter(case.tensors["noise"])
        options["noise_sampler"] = lambda *_: next(recording)
    levels = [case.tensors["sigmas"]] if "sigmas" in case.meaning else [args["sigma_min"], args["sigma_max"]]
    if "fast" in case.function:
        options["n"] = args["steps"]
    model = golden_model(case, load_mixture(FOLDER))
    result = function(model, case.tensors["x"], *levels, disable=True, **options)
    error = float((result - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.1e} of {case.tolerance:.1e}")
    assert error <= case.tolerance
    if "adaptive" not in case.function:
        assert model.calls == case.scalars["model_calls"]


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # of torchsde, whose ends are rounded
@pytest.mark.parametrize(("name", "options"), TREES[1:])
def test_noise_in_place_of_a_tree_is_counter_based(peer, name, options):
    """Its seed is drawn as the tree's is, and step i has draw i + 1 of it."""
    sigmas, x = peer.get_sigmas_karras(5, 0.05, 20.0), start(sigma=20.0)
    result, _, next_drawn = seeded_run(getattr(compat, name), denoiser(), x, sigmas, **options)
    _, _, after = seeded_run(getattr(peer, name), denoiser(), x, sigmas, **options)
    assert torch.equal(next_drawn, after)
    torch.manual_seed(3)
    noise = PhiloxNoise(int(torch.randint(0, 2**63 - 1, ())))
    draws = iter([noise.normal(x.shape, draw=i + 1) for i in range(4)])
    again = getattr(compat, name)(denoiser(), x, sigmas, disable=True, noise_sampler=lambda *_: next(draws), **options)
    torch.testing.assert_close(again, result, rtol=0, atol=1e-5)
    assert not torch.allclose(getattr(compat, name)(denoiser(), x, sigmas, disable=True, **options), result, atol=0.01)


@pytest.mark.parametrize("r", [0.5, 0.8])
def test_noise_of_a_middle_point_continues_as_in_a_tree(peer, r):
    """Both have unit variance, and the correlation of increments of one Brownian motion in sigma."""
    count = 200_000
    sigma, after = 4.0, 1.0
    middle = math.exp((1 - r) * math.log(sigma) + r * math.log(after))
    seen = []

    def network(x, sigma):
        seen.append(x.clone())
        return torch.zeros_like(x)

    def noises(module, n):
        seen.clear()
        torch.manual_seed(0)
        sigmas = torch.tensor([sigma, after], dtype=torch.float64)
        end = module.sample_dpmpp_sde(network, torch.zeros(1, n, dtype=torch.float64), sigmas, disable=True, r=r)
        scales = [to * math.sqrt(1 - (to / sigma) ** 2) for to in (middle, after)]
        return torch.stack([seen[1] / scales[0], end / scales[1]]).reshape(2, n)

    covariance = noises(compat, count).cov()
    expected = math.sqrt((sigma - middle) / (sigma - after))
    deviation = 5 * math.sqrt(2 / count)
    torch.testing.assert_close(covariance.diagonal(), torch.ones(2).double(), rtol=0, atol=deviation)
    assert abs(float(covariance[0, 1]) - expected) < deviation
    tree = noises(peer, count).cov()
    assert abs(float(tree[0, 1]) - expected) < deviation


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("get_sigmas_karras", {"sigma_min": 0.01, "sigma_max": 80.0}),
        ("get_sigmas_karras", {"sigma_min": 0.01, "sigma_max": 80.0, "rho": 3.0}),
        ("get_sigmas_exponential", {"sigma_min": 0.01, "sigma_max": 80.0}),
        ("get_sigmas_polyexponential", {"sigma_min": 0.01, "sigma_max": 80.0, "rho": 0.7}),
        ("get_sigmas_vp", {}),
        ("get_sigmas_vp", {"beta_d": 10.0, "beta_min": 0.2, "eps_s": 0.01}),
    ],
)
def test_sigmas(peer, name, options):
    for n in (1, 2, 11):
        ours, theirs = getattr(compat, name)(n, **options), getattr(peer, name)(n, **options)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        # the peer takes exp(...) - 1 in float32, half a bit of 1 in the square of a level
        lost = 2.0**-24 / float(theirs[-2]) ** 2 if name == "get_sigmas_vp" else 0.0
        torch.testing.assert_close(ours, theirs, rtol=2e-5 + lost, atol=0)


def test_extra_arguments_modes_and_the_state_of_the_caller():
    class Network(torch.nn.Module):
        def forward(self, x, sigma, *, scale, half=False):
            assert sigma.shape == x.shape[:1]
            assert sigma.dtype == x.dtype
            assert self.training  # k-diffusion does not touch it
            return scale * x

    network, sigmas = Network(), compat.get_sigmas_karras(3, 0.1, 1.0)
    for dtype in (torch.float32, torch.float16):
        x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
        result = compat.sample_euler(network, x, sigmas, {"scale": 0.5}, disable=True)
        assert result.dtype == dtype
        assert not result.requires_grad
        assert torch.equal(x, torch.ones_like(x))
    compat.sample_dpm_adaptive(network, torch.ones(2, 3), 0.1, 1.0, {"scale": 0.5}, disable=True)
    assert network.training


@pytest.mark.parametrize(("name", "options"), ON_LEVELS + TREES)
def test_nothing_is_read_on_the_host_between_steps(name, options):
    sigmas, x, calls = compat.get_sigmas_karras(4, 0.1, 10.0), torch.ones(2, 3, 4, 4), 0

    def count(x, sigma):
        nonlocal calls
        calls += 1
        return 0.5 * x

    getattr(compat, name)(count, x, sigmas, disable=True, **options)
    model, told = Watched(tuple(x.shape), calls), []
    with model.region:
        getattr(compat, name)(model, x, sigmas, callback=told.append, disable=True, **options)
    assert model.calls == calls
    assert len(told) == 4


def test_progress(capsys):
    sigmas, x = compat.get_sigmas_karras(4, 0.1, 1.0), torch.ones(2, 3)

    def network(x, sigma):
        return 0.5 * x

    compat.sample_heun(network, x, sigmas, disable=False)  # 7 network calls
    assert "4/4" in capsys.readouterr().err
    compat.sample_euler(network, x, sigmas, disable=False, s_churn=1.0)  # 5 rows
    assert "4/4" in capsys.readouterr().err
    compat.sample_dpm_fast(network, x, 0.1, 1.0, 7, disable=False)
    assert "7/7" in capsys.readouterr().err
    compat.sample_dpm_adaptive(network, x, 0.1, 1.0, disable=False)
    assert "it/s" in capsys.readouterr().err
    for disable in (True, None):  # no terminal here
        compat.sample_heun(network, x, sigmas, disable=disable)
        assert capsys.readouterr().err == ""


GOOD = torch.tensor([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("name", "args", "options", "error", "message"),
    [
        ("sample_euler", ([1.0, 0.0],), {}, TypeError, "sample_euler: sigmas must be a tensor, got list"),
        ("sample_euler", (GOOD.flip(0),), {}, ValueError, "sigmas must have shape .* fall strictly"),
        ("sample_euler", (torch.tensor([1.0, 1.0, 0.0]),), {}, ValueError, "sigmas .* fall strictly"),
        ("sample_euler", (torch.tensor([1.0, -1.0]),), {}, ValueError, "sigmas .* end at 0 or above"),
        ("sample_euler", (torch.tensor([math.inf, 1.0]),), {}, ValueError, "sigmas .* finite"),
        ("sample_euler", (GOOD[:1],), {}, ValueError, "sigmas must have shape"),
        ("sample_euler", (GOOD[None],), {}, ValueError, r"sigmas must have shape .* got shape \(1, 3\)"),
        ("sample_euler", (GOOD,), {"extra_args": 3}, TypeError, "extra_args must be a dict or None, got int"),
        ("sample_euler", (GOOD,), {"callback": 3}, TypeError, "callback must be callable or None, got int"),
        ("sample_heun", (GOOD,), {"s_churn": -1.0}, ValueError, "s_churn must be a finite number at least 0"),
        ("sample_heun", (GOOD,), {"s_tmin": 2.0, "s_tmax": 1.0}, ValueError, "0 <= s_tmin <= s_tmax, got 2.0, 1.0"),
        ("sample_lms", (GOOD,), {"order": 5}, ValueError, "order must be 1, 2, 3 or 4, got 5"),
        ("sample_dpm_2_ancestral", (GOOD,), {"eta": 1.5}, ValueError, "eta must be .* at most 1, got 1.5"),
        ("sample_dpmpp_2s_ancestral", (GOOD,), {"eta": 1.5}, ValueError, "eta must be .* at most 1, got 1.5"),
        ("sample_dpmpp_2m_sde", (GOOD,), {"solver_type": "taylor"}, ValueError, "solver_type must be one of midpoint"),
        ("sample_dpm_fast", (0.0, 1.0, 5), {}, ValueError, "sigma_min must be a finite number above 0, got 0.0"),
        ("sample_dpm_fast", (1.0, 0.5, 5), {}, ValueError, "sigma_max must be a finite number above 1, got 0.5"),
        ("sample_dpm_fast", (0.1, 0.5, 0), {}, ValueError, "sample_dpm_fast: n must be at least 1, got 0"),
        ("sample_dpm_adaptive", (0.1, 0.5), {"eta": 0.5}, ValueError, "eta must be 0, got 0.5, which is not supported"),
        ("sample_dpm_adaptive", (0.1, 0.5), {"order": 1}, ValueError, "order must be 2 .* or 3"),
        ("sample_euler_ancestral", (GOOD,), {"noise_sampler": lambda *_: torch.ones(3)}, ValueError, "noise_sampler"),
        ("sample_euler_ancestral", (GOOD,), {"noise_sampler": lambda *_: 1.0}, TypeError, "noise_sampler returns"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(name, args, options, error, message):
    with pytest.raises(error, match=message):
        getattr(compat, name)(lambda x, sigma: 0.5 * x, torch.ones(2, 3), *args, disable=True, **options)


def test_errors_of_model_and_state():
    for name in ("sample_euler", "sample_dpmpp_2m_sde"):
        with pytest.raises(TypeError, match=f"{name}: model must be callable"):
            getattr(compat, name)(None, torch.ones(2, 3), GOOD, disable=True)
        with pytest.raises(TypeError, match=f"{name}: x must be float32"):
            getattr(compat, name)(lambda x, sigma: x, torch.ones(2, 3, dtype=torch.int64), GOOD, disable=True)
        with pytest.raises(NonFiniteError):
            getattr(compat, name)(lambda x, sigma: x * math.nan, torch.ones(2, 3), GOOD, disable=True)
    with pytest.raises(ValueError, match="sigma_min must be"):
        compat.get_sigmas_karras(3, 0.0, 1.0)
    with pytest.raises(ValueError, match="sigma_max must be"):
        compat.get_sigmas_exponential(3, 1.0, 0.5)
    with pytest.raises(ValueError, match="n must be at least 1"):
        compat.get_sigmas_vp(0)

"""RK45: scipy's steps, the literal reference, recorded runs, accuracy, and what a call may cost."""

import warnings
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, RK45Sampler, SubVPSDE
from fastscore.noise import PhiloxNoise
from fastscore.reference.samplers import rk45_sampler
from fastscore.samplers import Hook
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.networks import PeerDrift
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation, vp_perturbation
from fastscore.testing.traffic import Traffic, traffic_per_step

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
CASES = load_cases(FOLDER, "score_sde_ode")
SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(200, 5e-4, 0.1)}
DATA = mixture_2d()


def exact_network(name):
    if name == "ve":
        return AnalyticModel(DATA, ve_perturbation, "score")
    if name == "discrete":
        raise ValueError(name)
    return AnalyticModel(DATA, vp_perturbation(subvp=name == "subvp"), "noise")


def smooth(x, label):
    return torch.tanh(x * 0.7) - 0.1 * x + label.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


def sampled(sampler, *args, **kwargs):
    """Samples, info, and times and states of the accepted points."""
    times, states = [1.0], []

    def callback(index, trial, x):
        if bool(trial.accepted[0]):
            times.append(float(trial.t_next[0]))
            states.append(x)

    x, info = sampler.sample(*args, return_info=True, callback=callback, **kwargs)
    return x, info, torch.tensor(times, dtype=torch.float64), states


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_batch_norm_takes_the_steps_of_scipy(name, tolerance):
    from scipy.integrate import solve_ivp

    sde, model, shape = SDES[name], exact_network(name), (4, *DATA.shape)
    sampler = RK45Sampler(sde, model, rtol=tolerance, atol=tolerance, norm="batch")
    start = sde.prior_sample(shape, noise=PhiloxNoise(7), dtype=torch.float64)

    def slope(t, y):
        x, time = torch.from_numpy(y).reshape(shape), torch.tensor(t, dtype=torch.float64)
        p, q = sampler.convention.coefficients(sde, time)
        score = p * x + q * model(x, sampler.convention.labels(sde, time).expand(4))
        return (sde.drift(x, time) - 0.5 * sde.diffusion(time) ** 2 * score).flatten().numpy()

    solution = solve_ivp(slope, (1.0, sampler.eps), start.flatten().numpy(), rtol=tolerance, atol=tolerance)
    x, info, times, _ = sampled(sampler, start)
    assert info.nfe.tolist() == [solution.nfev] * 4
    torch.testing.assert_close(times, torch.from_numpy(solution.t), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.flatten(), torch.from_numpy(solution.y[:, -1]), rtol=0, atol=1e-6)
    assert info.finished.all()
    assert (info.t == sampler.eps).all()
    assert info.accepted[0] == len(times) - 1
    assert ((info.accepted + info.rejected) * 6 + 2 == info.nfe).all()


@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_as_accurate_as_torchdiffeq(name):
    """Its dopri5 has another controller; at one tolerance both must be as far from the truth, within a factor."""
    from torchdiffeq import odeint

    sde, model, shape = SDES[name], exact_network(name), (4, *DATA.shape)
    start = sde.prior_sample(shape, noise=PhiloxNoise(8), dtype=torch.float64)
    convention = RK45Sampler(sde, model).convention

    def slope(t, x):
        p, q = convention.coefficients(sde, t)
        score = p * x + q * model(x, convention.labels(sde, t).expand(4))
        return sde.drift(x, t) - 0.5 * sde.diffusion(t) ** 2 * score

    def theirs(tolerance):
        ends = torch.tensor([1.0, sde.sampling_eps], dtype=torch.float64)
        stop_there = {"step_t": ends[1:]}  # else it steps past the end, where VP has no score, and interpolates
        return odeint(slope, start, ends, rtol=tolerance, atol=tolerance, method="dopri5", options=stop_there)[-1]

    truth = theirs(1e-9)
    peer = float((theirs(1e-5) - truth).abs().max())
    for norm in ("batch", "sample"):
        x = RK45Sampler(sde, model, rtol=1e-5, atol=1e-5, norm=norm).sample(start)
        error = float((x - truth).abs().max())
        print(f"{name} {norm}: error {error:.1e}, torchdiffeq {peer:.1e}")
        assert error < max(10 * peer, 1e-5)
    # and the truth is the same
    fine = RK45Sampler(sde, model, rtol=1e-9, atol=1e-9).sample(start)
    torch.testing.assert_close(fine, truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("name", SDES)
def test_equals_the_literal_reference(name, norm, prediction):
    sde, convention = SDES[name], Convention(prediction, "log_sigma")
    sampler = RK45Sampler(sde, smooth, rtol=1e-3, atol=1e-3, norm=norm, eps=0.01, convention=convention, denoise=True)
    start = sde.prior_sample((3, 2, 4, 4), noise=PhiloxNoise(9), dtype=torch.float64)
    x, info = sampler.sample(start, return_info=True)
    expected, counts = rk45_sampler(
        sde, smooth, start, convention, rtol=1e-3, atol=1e-3, norm=norm, eps=0.01, denoise=True
    )
    assert list(zip(info.accepted.tolist(), info.rejected.tolist(), strict=True)) == counts
    torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert info.nfe.tolist() == [2 + 6 * (a + r) + 1 for a, r in counts]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backends_and_a_hook_that_does_nothing_change_nothing(backend):
    class Nothing(Hook):
        def on_denoised(self, denoised, x, moment):
            assert moment.t.shape == (len(x),)
            return None

    sde = SDES["vp"]
    sampler = RK45Sampler(sde, exact_network("vp"), rtol=1e-4, atol=1e-4)
    start = sde.prior_sample((4, *DATA.shape), noise=PhiloxNoise(10), dtype=torch.float64)
    expected, info = sampler.sample(start, return_info=True)
    with fastscore.backend(backend):
        for hooks in ([], [Nothing()]):
            x, other = sampler.sample(start, hooks=hooks, return_info=True)
            torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)
            assert torch.equal(other.nfe, info.nfe)


def published(case):
    """The published run again: samples, info, accepted times and states; the network; the sampler."""
    args, sde_args = case.args, {k: v for k, v in case.args["sde"].items() if k not in ("cls", "N", "T")}
    sde = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}[args["sde"]["cls"]](**sde_args)
    model = golden_model(case, load_mixture(FOLDER))
    start = case.tensors["z"] if args["z"] else case.tensors["noise"][0] * sde.prior_std
    sampler = RK45Sampler(
        sde,
        PeerDrift(sde, model),
        rtol=args["rtol"],
        atol=args["atol"],
        eps=args["eps"],
        norm="batch",
        convention=Convention("score", "time"),
    )
    return sampler, model, *sampled(sampler, start.double())


def on_published_scale(case, sampler, model, x):
    """What the published sampler does with the last state."""
    x = x.float()
    if case.args["denoise"]:
        # the mean of a step of the 1000-step chain, not Tweedie's formula
        sde, t = sampler.sde, torch.full((len(x),), sampler.eps)
        f, g = sde.chain_step(sampler.eps, case.args["sde"]["N"])
        if isinstance(sde, VESDE):
            score = model(x, sde.sigma(sampler.eps).float().expand(len(x)))
        else:
            score = -model(x, 999 * t) / float(sde.sigma(sampler.eps))
        x = x - float(f) * x + float(g) ** 2 * score
    return x if case.args["inverse_scaler"] == "identity" else (x + 1) / 2


def rounding_decides(case):
    """VP and sub-VP begin so smoothly that at 1e-5 the error estimate is the rounding of the float32 drift."""
    return case.args["rtol"] == 1e-5 and case.args["sde"]["cls"] != "VESDE"


@pytest.mark.parametrize("case", [case for case in CASES if not rounding_decides(case)], ids=str)
def test_takes_the_published_steps(case):
    """Float64 state, float32 drift, as the published sampler has them: the same network calls, times and states."""
    sampler, model, x, info, times, states = published(case)
    # one input that rounds to the next float32 moves later times by up to 4e-5
    assert info.nfe.tolist() == [case.scalars["nfe"]] * len(x)
    torch.testing.assert_close(times, case.tensors["ode_t"], rtol=0, atol=1e-4)
    seen = 0
    for name, expected in case.tensors.items():
        if name.startswith("ode_y_"):
            error = float((states[int(name[6:]) - 1] - expected).abs().max()) / float(expected.abs().max())
            assert error < 1e-4, (name, error)
            seen += 1
    assert seen == 3
    error = float((on_published_scale(case, sampler, model, x) - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance


@pytest.mark.parametrize("case", [case for case in CASES if rounding_decides(case)], ids=str)
def test_ends_where_the_published_run_ends(case):
    """In exact arithmetic the steps differ, so both are off the exact end by what rtol allows; ours not by more."""
    sampler, model, _, _, _, _ = published(case)
    start = case.tensors["z"] if case.args["z"] else case.tensors["noise"][0]
    options = {"eps": sampler.eps, "norm": "batch"}
    x = RK45Sampler(sampler.sde, model, rtol=1e-5, atol=1e-5, **options).sample(start.double())
    fine = RK45Sampler(sampler.sde, model, rtol=1e-9, atol=1e-9, **options).sample(start.double())
    exact = on_published_scale(case, sampler, model, fine)
    ours, theirs = (
        float((y - exact).abs().max()) for y in (on_published_scale(case, sampler, model, x), case.tensors["result"])
    )
    print(f"{case.id}: off by {ours:.2e}, the published run by {theirs:.2e}; tolerance {case.tolerance:.2e}")
    assert ours <= max(1.2 * theirs, case.tolerance)


def test_the_two_tests_above_cover_every_case():
    assert sum(map(rounding_decides, CASES)) == 5
    assert len(CASES) == 14


@pytest.mark.parametrize("norm", ["batch", "sample"])
@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_the_error_falls_with_the_tolerance(name, norm):
    """In proportion: error per step is controlled, so a tolerance 100 times smaller brings the error down like that."""
    sde, model = SDES[name], exact_network(name)
    start = sde.prior_sample((8, *DATA.shape), noise=PhiloxNoise(11), dtype=torch.float64)
    exact = RK45Sampler(sde, model, rtol=1e-10, atol=1e-10).sample(start)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        x, info = RK45Sampler(sde, model, rtol=tolerance, atol=tolerance, norm=norm).sample(start, return_info=True)
        errors.append(float((x - exact).square().mean().sqrt()))
        calls.append(float(info.nfe.double().mean()))
    print(f"{name} {norm}: errors {errors}, network calls {calls}")
    assert errors[0] < 30 * 1e-3
    for i in range(2):
        assert 10 < errors[i] / errors[i + 1] < 5000
        assert 1.3 < calls[i + 1] / calls[i] < 3.2  # order 5: 100^(1/5) = 2.5


def test_first_step_is_taken_and_saves_a_call():
    model = exact_network("vp")
    sampler = RK45Sampler(SDES["vp"], model, first_step=0.125, max_steps=1, rtol=1.0)
    with pytest.warns(RuntimeWarning, match="max_steps"):
        _, info, times, _ = sampled(sampler, (2, *DATA.shape))
    assert times.tolist() == [1.0, 0.875]
    assert info.nfe.tolist() == [7, 7]
    whole = RK45Sampler(SDES["vp"], model, first_step=5.0, rtol=1e6, norm="batch")
    assert sampled(whole, (2, *DATA.shape))[2].tolist() == [1.0, 1e-3]  # clipped to the end


class Outputs(torch.nn.Module):
    """A network that costs nothing: one of the tensors it holds, in turn; counts the rows it is run on."""

    def __init__(self, shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        scale = torch.logspace(-2, 0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))  # so that samples differ in steps
        self.held = [scale * torch.randn(shape, generator=generator) for _ in range(101)]
        self.calls = self.rows = 0

    def forward(self, x, label):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return self.held[self.calls % 101][: len(x)]


@pytest.mark.no_poison  # deterministic mode fills what is allocated, which would count
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("norm", ["batch", "sample"])
def test_a_call_moves_at_most_eight_states(name, norm):
    """Where all samples decide alike 42 in 6 calls, and 6 more where some accept and some do not."""
    shape, tolerance = (6, 3, 16, 16), 1e-3

    def run(steps):
        sampler = RK45Sampler(SDES[name], Outputs(shape), rtol=tolerance, atol=tolerance, norm=norm, max_steps=steps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            _, info = sampler.sample(shape, return_info=True)
        assert not info.finished.any()
        return info

    count = traffic_per_step(run, torch.empty(shape), (3, 9))
    mixed = run(9).accepted.unique().numel() > 1
    per_call = f"{count.moved / 6:.2f} states, {count.full / 6:.2f} full-size operators of {count.calls / 6:.1f}"
    print(f"{name} {norm}: {per_call} per network call; accepted {run(9).accepted.tolist()} of 9")
    assert count.by_op["fastscore::linear_step"][0] == 6
    assert count.by_op["fastscore::error_norm"] == (1, 9)
    assert count.moved <= 48
    assert count.full <= 12
    assert (count.moved == 42) or mixed


@pytest.mark.no_poison
def test_a_whole_run_with_leaving_samples_moves_at_most_eight_states_per_row():
    """Counted in states of one sample, all that happens to each included."""
    shape = (16, 3, 16, 16)
    model = Outputs(shape)
    sampler = RK45Sampler(SDES["vp"], model, rtol=0.1, atol=0.1)
    with Traffic(torch.empty(shape[1:])) as traffic:
        _, info = sampler.sample(torch.ones(shape), return_info=True)
    assert info.nfe.unique().numel() > 1
    assert model.rows == int(info.nfe.sum())
    moved = traffic.count.moved / model.rows
    print(f"{moved:.2f} states per row of the network, {int(info.nfe.sum())} rows")
    assert moved <= 8

"""DPM-Solver and DPM-Solver++ as their user meets them: parity with the reference, few steps, cost, errors."""

import itertools

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, DPMSolverSampler, SubVPSDE
from fastscore.noise import PhiloxNoise
from fastscore.reference.samplers import dpm_solver_sampler
from fastscore.testing.networks import Held, Smooth, Watching, assert_reads_nothing_between_steps
from fastscore.testing.statistics import AnalyticModel, assert_same_law, mixture_2d, ve_perturbation, vp_perturbation
from fastscore.testing.traffic import traffic_per_step

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(50, 1e-3, 0.2)}
METHODS = ("multistep", "singlestep", "singlestep_fixed")
ALGORITHMS = ("dpmsolver++", "dpmsolver")
SPACINGS = ("log_snr", "linear", "quadratic", "karras")
ENDS = {"eps": {}, "clean": {"denoise": True}, "denoise_to_zero": {"denoise_to_zero": True}}
SHAPE = (2, 3, 8, 8)


def assert_equals_reference(sde, convention, hooks=(), seed=5, **options):
    sampler = DPMSolverSampler(sde, Smooth(), convention=convention, **options)
    noise = PhiloxNoise(seed)
    latent = sde.prior_sample(SHAPE, noise=noise, dtype=torch.float64)
    x = sampler.sample(latent, seed=seed, hooks=hooks)
    start = latent.clone()
    expected = dpm_solver_sampler(sde, Smooth(), start, noise, sampler.convention, **{"eps": sampler.eps} | options)
    scale = max(1.0, float(expected.abs().max()))
    error = float((x - expected).abs().max()) / scale
    assert error < 1e-10, f"{error:.2e}"
    return sampler


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("solver_type", ["midpoint", "taylor"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_literal_reference(method, algorithm, order, solver_type, end):
    """In float64, so that only a wrong formula can differ, on every SDE and spacing."""
    for sde, spacing in itertools.product(SDES.values(), SPACINGS):
        options = {"method": method, "algorithm": algorithm, "order": order, "solver_type": solver_type}
        assert_equals_reference(sde, None, steps=12, spacing=spacing, eps=0.02, **options, **ENDS[end])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
def test_every_prediction_with_hook_and_clip_equals_the_literal_reference(prediction, algorithm, method, backend):
    convention = Convention(prediction, "log_sigma")
    options = {"steps": 6, "order": 3, "method": method, "algorithm": algorithm, "eps": 0.02}
    with fastscore.backend(backend):
        for sde in SDES.values():
            assert_equals_reference(sde, convention, **options)
            assert_equals_reference(sde, convention, hooks=[Watching()], **options)
            assert_equals_reference(sde, convention, clip=0.4, **options)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("spacing", ["log_snr", "linear"])
def test_added_noise_equals_the_literal_reference(sde, clean, spacing):
    for method, algorithm in itertools.product(METHODS[1:], ALGORITHMS):
        options = {"steps": 9, "order": 3, "method": method, "algorithm": algorithm}
        assert_equals_reference(SDES[sde], None, spacing=spacing, eps=0.02, eta=0.6, denoise=clean, **options)


@pytest.mark.parametrize("sde", SDES)
def test_added_noise_never_aims_below_the_end(sde):
    times = torch.tensor([0.97, 0.6, 0.2, 0.19], dtype=torch.float64)
    options = {"steps": 3, "order": 1, "method": "singlestep", "spacing": times, "eta": 1.0}
    sampler = assert_equals_reference(SDES[sde], None, **options)
    _, before, last = sampler.plan().steps
    assert before.coefficients[-1] > 0
    assert last.coefficients[-1] == 0


@pytest.mark.parametrize("sde", SDES)
def test_given_times_equal_the_literal_reference(sde):
    times = torch.tensor([0.97, 0.7, 0.42, 0.3, 0.15, 0.06, 0.03])
    for method, algorithm in itertools.product(METHODS, ALGORITHMS):
        options = {"order": 3, "method": method, "algorithm": algorithm, "spacing": times.double()}
        sampler = assert_equals_reference(SDES[sde], None, steps=6, **options)
        assert sampler.start == pytest.approx(0.97)
        assert_equals_reference(SDES[sde], None, steps=6, **options | {"spacing": times.double()[:-1]}, denoise=True)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("method", ["multistep", "singlestep"])
@pytest.mark.parametrize("end", ENDS)
def test_few_steps_are_safe(sde, algorithm, method, end):
    """1, 2, 3 and odd numbers of steps, ending in noise or not: no NaN, and as many network calls as asked for."""
    for steps, order in itertools.product((1, 2, 3, 4, 5, 7), (1, 2, 3)):
        options = {"steps": steps, "order": order, "method": method, "algorithm": algorithm, **ENDS[end]}
        sampler = assert_equals_reference(SDES[sde], None, eps=0.02, **options)
        assert sampler.plan().nfe == steps + (end == "denoise_to_zero")


@pytest.mark.parametrize(
    ("steps", "order", "expected"),
    [
        (10, 3, [3, 3, 3, 1]),
        (12, 3, [3, 3, 3, 2, 1]),
        (15, 3, [3, 3, 3, 3, 2, 1]),
        (20, 3, [3, 3, 3, 3, 3, 3, 2]),
        (7, 2, [2, 2, 2, 1]),
    ],
)
def test_singlestep_orders_are_the_published_ones(steps, order, expected):
    sampler = DPMSolverSampler(VPSDE(), Smooth(), steps=steps, order=order, method="singlestep")
    names = [step.name for step in sampler.plan().steps if not step.stage]
    assert names == [f"dpmsolver++ {k}S" for k in expected]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 6}, "123321"),
        ({"steps": 6, "lower_order_final": False}, "123333"),
        ({"steps": 6, "lower_order_final": False, "denoise": True}, "123331"),
        ({"steps": 14}, "12333333333321"),
        ({"steps": 15}, "123333333333333"),
        ({"steps": 15, "denoise": True}, "123333333333331"),
    ],
)
def test_multistep_orders(options, expected):
    sampler = DPMSolverSampler(VPSDE(), Smooth(), order=3, **options)
    assert [step.name for step in sampler.plan().steps] == [f"dpmsolver++ {k}M" for k in expected]


def test_order_one_is_the_same_whatever_is_integrated():
    """DDIM: exact for a constant noise and for a constant clean image, which follow from each other."""
    for sde, clean in itertools.product(SDES.values(), [False, True]):
        noise, image = (
            DPMSolverSampler(sde, Smooth(), steps=5, order=1, algorithm=a, denoise=clean).sample(
                SHAPE, seed=1, dtype=torch.float64
            )
            for a in ALGORITHMS
        )
        torch.testing.assert_close(noise, image, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", ["vp", "subvp", "ve"])
def test_rising_times_encode(sde):
    """Up and down again arrives where it began, the nearer the more steps there are."""
    perturb = {"vp": vp_perturbation(), "subvp": vp_perturbation(subvp=True), "ve": ve_perturbation}[sde]
    model = AnalyticModel(mixture_2d(), perturb, "score" if sde == "ve" else "noise")
    times, x = torch.linspace(0.05, 1, 321, dtype=torch.float64), mixture_2d().sample(8, seed=1)
    distances = []
    for stride in (4, 1):
        options = {"steps": 320 // stride, "order": 3, "solver_type": "taylor"}
        latent = DPMSolverSampler(SDES[sde], model, spacing=times[::stride], **options).sample(x)
        back = DPMSolverSampler(SDES[sde], model, spacing=times[::stride].flip(0), **options).sample(latent)
        distances.append(float((back - x).abs().max()))
    print(sde, distances)
    assert float(latent.std()) > 2 * float(x.std()) or sde != "ve"
    assert distances[1] < 1e-3
    assert distances[1] < distances[0] / 8


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_added_noise_reaches_the_law(algorithm):
    data = mixture_2d()
    model = AnalyticModel(data, vp_perturbation(), "noise")
    options = {"steps": 120, "order": 2, "method": "singlestep", "algorithm": algorithm, "eta": 1.0}
    sampler = DPMSolverSampler(VPSDE(), model, eps=1e-4, **options)
    assert_same_law(sampler.sample((4000, *data.shape), seed=4), data, f"{algorithm} with eta = 1")


@pytest.mark.parametrize("prediction", ["noise", "denoised", "v"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_multistep_step_moves_the_least_it_can(algorithm, order, prediction):
    """State, output, order - 1 older predictions; the state and, where it is used again, a prediction are written."""

    def run(n):
        options = {"order": order, "algorithm": algorithm, "convention": Convention(prediction, "time")}
        DPMSolverSampler(VPSDE(), Held(SHAPE), steps=n, **options).sample(SHAPE, seed=0)

    count = traffic_per_step(run, torch.empty(SHAPE), (20, 24))
    assert 0 < count.moved <= (4 if order == 1 else 3 + order), count.by_op
    assert count.full == 1, count.by_op
    assert count.calls <= 5, count.by_op


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_singlestep_step_is_one_kernel_a_call(algorithm, order):
    def run(n):
        options = {"order": order, "algorithm": algorithm, "method": "singlestep_fixed"}
        DPMSolverSampler(VPSDE(), Held(SHAPE), steps=n * order, **options).sample(SHAPE, seed=0)

    count = traffic_per_step(run, torch.empty(SHAPE), (8, 12))
    assert count.full == order, count.by_op
    assert 0 < count.moved <= 3 + order + (order - 1) * 4, count.by_op


@pytest.mark.parametrize("method", METHODS)
def test_no_host_synchronization_between_steps(method):
    def make(model):
        return DPMSolverSampler(VPSDE(), model, steps=12, order=3, method=method)

    assert_reads_nothing_between_steps(make, SHAPE, 12)


def test_a_network_that_returns_the_same_memory_is_refused():
    out = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"the network returned memory that it had returned before"):
        DPMSolverSampler(VPSDE(), lambda x, t: out, steps=4, method="singlestep").sample(SHAPE)


def test_plan_shows_the_solver():
    text = str(DPMSolverSampler(VPSDE(), Smooth(), steps=6, order=3, method="singlestep").plan())
    assert text.startswith("6 network calls")
    assert text.count("dpmsolver++ 3S*") == 2
    assert text.count("dpmsolver++ 1S ") == 1


VP, NET = VPSDE(), Smooth()
UP = torch.linspace(0.1, 0.9, 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"order": 4}, ValueError, r"DPMSolverSampler: order must be 1, 2 or 3, got 4"),
        ({"order": 0}, ValueError, r"order must be at least 1, got 0"),
        ({"order": 2.0}, TypeError, r"order must be an integer, got 2.0"),
        ({"method": "adaptive"}, ValueError, r"method must be one of multistep, singlestep, .* got 'adaptive'"),
        ({"algorithm": "unipc"}, ValueError, r"algorithm must be one of dpmsolver\+\+, dpmsolver, got 'unipc'"),
        ({"solver_type": "heun"}, ValueError, r"solver_type must be one of midpoint, taylor, got 'heun'"),
        ({"spacing": "cubic"}, ValueError, r"spacing must be one of linear, .* got 'cubic'"),
        ({"spacing": torch.linspace(1, 0.1, 5)}, ValueError, r"shape .*\(7,\), got shape \(5,\)"),
        ({"spacing": UP, "denoise": True}, ValueError, r"rising times lead to noise"),
        (
            {"spacing": torch.linspace(1, 0, 7)},
            ValueError,
            r"no noise at a time of spacing; leave it out, and set denoise=True",
        ),
        ({"steps": 7, "order": 3, "method": "singlestep_fixed"}, ValueError, r"a multiple of order = 3, got 7"),
        ({"eta": 0.5}, ValueError, r"eta needs method='singlestep' or 'singlestep_fixed', got 'multistep'"),
        (
            {"eta": 1.5, "method": "singlestep"},
            ValueError,
            "eta must be a finite number at least 0 and at most 1, got 1.5",
        ),
        ({"denoise": True, "denoise_to_zero": True}, ValueError, r"denoise=True leaves no noise for denoise_to_zero"),
        ({"rho": 0.5, "spacing": "karras"}, ValueError, r"rho must be a finite number of at least 1, got 0.5"),
        ({"steps": 0}, ValueError, r"steps must be at least 1, got 0"),
    ],
)
def test_bad_construction(options, error, message):
    with pytest.raises(error, match=message):
        DPMSolverSampler(VP, NET, **{"steps": 6} | options)


def test_a_schedule_without_signal_at_the_start_is_refused():
    schedule = DiscreteVPSDE.from_alphas_cumprod([0.9, 0.5, 0.0], min_log_snr=None)
    with pytest.raises(ValueError, match=r"must have signal and noise at every time"):
        DPMSolverSampler(schedule, NET, steps=4, spacing="linear")

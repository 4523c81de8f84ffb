"""What all adaptive samplers do alike: leave the batch, keep to themselves, stop, report, refuse, and seldom wait."""

import math
import warnings

import pytest
import torch

from fastscore import (
    VESDE,
    VPSDE,
    AdaptiveSDESampler,
    Convention,
    DiscreteVPSDE,
    DPMSolverAdaptive,
    NonFiniteError,
    RK45Sampler,
    SubVPSDE,
)
from fastscore.noise import PhiloxNoise, ReplayNoise, TorchNoise
from fastscore.samplers import Hook, PIDController
from fastscore.testing.statistics import CountingModel
from fastscore.testing.traffic import host_reads

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(200, 5e-4, 0.1)}
MAKERS = {
    "rk45": lambda sde, model, **options: RK45Sampler(sde, model, **{"rtol": 1e-3, "atol": 1e-3, **options}),
    "dpm-12": lambda sde, model, **options: DPMSolverAdaptive(sde, model, **{"order": 2, **options}),
    "dpm-23": lambda sde, model, **options: DPMSolverAdaptive(
        sde, model, **{"algorithm": "dpmsolver++", "rtol": 0.01, "atol": 1e-3, **options}
    ),
    "dpm-pid": lambda sde, model, **options: DPMSolverAdaptive(
        sde, model, **{"controller": PIDController(0.2, 0.7, 0.1), **options}
    ),
    "sde": lambda sde, model, **options: AdaptiveSDESampler(sde, model, **{"rtol": 0.1, "atol": 0.05, **options}),
}
SHAPE = (9, 3, 6, 6)


def smooth(x, label):
    """A network whose output for a sample depends on that sample alone, also in its last bit."""
    return torch.tanh(x * 0.7) - 0.1 * x + (label / 500).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


def scaled_start(sde, shape=SHAPE, seed=3, dtype=torch.float32):
    """Samples that need different steps."""
    x = sde.prior_sample(shape, noise=PhiloxNoise(seed), dtype=dtype)
    return x * torch.linspace(0.2, 3, shape[0], dtype=dtype).reshape(-1, *[1] * (len(shape) - 1))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("maker", MAKERS)
def test_the_network_sees_each_sample_as_often_as_reported(maker, name):
    model = CountingModel(smooth)
    sampler = MAKERS[maker](SDES[name], model)
    x, info = sampler.sample(scaled_start(SDES[name]), return_info=True)
    assert torch.isfinite(x).all()
    assert info.finished.all()
    assert model.samples == int(info.nfe.sum())
    assert info.nfe.unique().numel() > 1  # they did leave at different times
    per_trial = {"rk45": 6, "dpm-12": 1, "dpm-23": 2, "dpm-pid": 2, "sde": 1}[maker]
    trials = info.accepted + info.rejected
    if maker == "rk45":
        assert torch.equal(info.nfe, 2 + 6 * trials)
    else:  # one more at every state that was left, and the final denoising of the SDE
        assert torch.equal(info.nfe, per_trial * trials + info.accepted + (maker == "sde"))
    torch.testing.assert_close(info.t, torch.full_like(info.t, sampler.eps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("maker", MAKERS)
def test_a_sample_does_not_depend_on_its_batchmates(maker, name):
    """To the last bit: result, network calls and decisions; also in shards, on 2 threads and in channels-last."""
    sde = SDES[name]
    sampler = MAKERS[maker](sde, smooth)
    start = scaled_start(sde, (33, 2, 5, 5))
    whole, info = sampler.sample(start, seed=3, return_info=True)
    for rows in ([0], [32], list(range(16, 23))):
        part, own = sampler.sample(start[rows], noise=PhiloxNoise(3, rows), return_info=True)
        assert torch.equal(part, whole[rows])
        for field in ("nfe", "accepted", "rejected", "t"):
            assert torch.equal(getattr(own, field), getattr(info, field)[rows]), field
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(sampler.sample(start, seed=3), whole)
    finally:
        torch.set_num_threads(threads)
    channels_last = sampler.sample(start.to(memory_format=torch.channels_last), seed=3)
    assert torch.equal(channels_last, whole)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_common_step_depends_on_the_batch_and_costs_all_the_same(maker):
    model = CountingModel(smooth)
    sampler = MAKERS[maker](SDES["vp"], model, norm="batch")
    start = scaled_start(SDES["vp"])
    x, info = sampler.sample(start, return_info=True)
    assert info.nfe.unique().numel() == info.accepted.unique().numel() == 1
    assert model.calls == int(info.nfe[0])
    assert not torch.equal(sampler.sample(start[:2], noise=PhiloxNoise(0)), x[:2])


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("maker", MAKERS)
def test_an_exhausted_budget_is_told_and_the_last_state_returned(maker, norm):
    sampler = MAKERS[maker](SDES["vp"], smooth, norm=norm, max_steps=4)
    seen = []
    with pytest.warns(RuntimeWarning, match=r"9 of 9 samples have not reached t = 0.001 within 4 trials \(max_steps\)"):
        x, info = sampler.sample(
            scaled_start(SDES["vp"]), return_info=True, callback=lambda i, trial, x: seen.append((i, trial, x))
        )
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][2], x)  # not denoised either
    assert not info.finished.any()
    assert (info.accepted + info.rejected == 4).all()
    last = seen[-1][1]
    torch.testing.assert_close(info.t, torch.where(last.accepted, last.t_next, last.t), rtol=0, atol=0)
    assert (info.t > 0.001).all()


def test_those_that_arrive_within_the_budget_are_finished():
    model = CountingModel(smooth)
    sampler = MAKERS["rk45"](SDES["vp"], model, denoise=True)
    start = scaled_start(SDES["vp"])
    whole, full = sampler.sample(start, return_info=True)
    trials = full.accepted + full.rejected
    budget = int(trials.median())
    assert trials.min() < budget < trials.max()
    model.samples = 0
    sampler = MAKERS["rk45"](SDES["vp"], model, denoise=True, max_steps=budget)
    with pytest.warns(RuntimeWarning, match=f"{int((trials > budget).sum())} of 9 samples"):
        x, info = sampler.sample(start, return_info=True)
    assert torch.equal(info.finished, trials <= budget)
    assert torch.equal(x[info.finished], whole[info.finished])
    assert model.samples == int(info.nfe.sum())
    assert torch.equal(info.nfe[info.finished], full.nfe[info.finished])


@pytest.mark.parametrize("maker", MAKERS)
def test_a_network_that_fails_at_once_is_named(maker):
    calls = []

    def model(x, label):
        calls.append(label)
        return torch.full_like(x, torch.nan)

    with pytest.raises(NonFiniteError, match=r"the error of trial \d+ from t = 1 is not finite"):
        MAKERS[maker](SDES["vp"], model).sample(scaled_start(SDES["vp"]))
    assert len(calls) < 100


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_network_that_fails_is_named_and_never_accepted(maker, norm, value):
    calls = []

    def model(x, label):
        calls.append(label)
        h = smooth(x, label)
        return torch.where(label.reshape(-1, 1, 1, 1) < 500, value, h)  # 999 t

    sampler = MAKERS[maker](SDES["vp"], model, norm=norm)
    start = scaled_start(SDES["vp"])
    with pytest.raises(NonFiniteError, match=r"the error of trial \d+ from t = 0\.[45]\d* is not finite"):
        sampler.sample(start)
    assert len(calls) < 600
    calls.clear()
    with pytest.raises(NonFiniteError, match=r"the error of trial \d+ from t = [\d.]+ is not finite"):
        sampler.sample(start, check_finite=True)
    assert len(calls) < 150


def test_a_failure_that_shorter_steps_avoid_is_survived():
    """A network that fails at the points of a first trial that went too far: it is rejected, and the run goes on."""
    calls = []

    def model(x, label):
        calls.append(label)
        return smooth(x, label) * (math.nan if len(calls) in (3, 4) else 1)

    sampler = MAKERS["rk45"](SDES["vp"], model, first_step=0.999)
    _, info = sampler.sample(scaled_start(SDES["vp"]), return_info=True)
    assert info.finished.all()
    assert (info.rejected > 0).all()
    assert float(calls[7].max()) == pytest.approx(999 * (1 - 0.999 * 0.2 / 5))  # a fifth as long


class Watch(Hook):
    """Records what it is given, and moves states a little."""

    def __init__(self, change):
        self.change, self.seen = change, {"before": [], "denoised": [], "after": []}

    def before_step(self, x, moment):
        self.seen["before"].append((moment.index, moment.t.clone(), x.clone()))
        moment.normal(x)
        return x * (1 + 1e-3 * self.change)

    def on_denoised(self, denoised, x, moment):
        assert denoised.shape == x.shape
        assert moment.t.shape == (len(x),)
        moment.normal(x, 1)
        self.seen["denoised"].append((moment.index, moment.t.clone(), x.clone()))
        return denoised * (1 - 0.1 * self.change)

    def after_step(self, x, moment):
        self.seen["after"].append((moment.index, moment.t.clone(), x.clone()))
        return x + 1e-3 * self.change


@pytest.mark.parametrize("maker", MAKERS)
def test_hooks_are_called_and_heard(maker):
    sampler = MAKERS[maker](SDES["vp"], smooth)
    start = scaled_start(SDES["vp"], dtype=torch.float64)
    plain = sampler.sample(start)
    idle, active = Watch(0), Watch(1)
    model = CountingModel(smooth)
    x, info = MAKERS[maker](SDES["vp"], model).sample(start, hooks=[idle], return_info=True)
    torch.testing.assert_close(x, plain, rtol=1e-9, atol=1e-9)
    trials = int((info.accepted + info.rejected).max())
    for kind in ("before", "after"):
        assert [index for index, _, _ in idle.seen[kind]] == list(range(trials))
    assert sum(len(t) for _, t, _ in idle.seen["denoised"]) == model.samples == int(info.nfe.sum())
    assert torch.equal(idle.seen["before"][0][2], start)
    changed = sampler.sample(start, hooks=[active])
    assert float((changed - plain).abs().max()) > 1e-3


def test_a_sample_with_hooks_does_not_depend_on_its_batchmates():
    for maker in MAKERS.values():
        sampler = maker(SDES["vp"], smooth)
        start = scaled_start(SDES["vp"])
        whole = sampler.sample(start, hooks=[Watch(1)], seed=4)
        part = sampler.sample(start[3:5], hooks=[Watch(1)], noise=PhiloxNoise(4, [3, 4]))
        assert torch.equal(part, whole[3:5])


class Noisy(Hook):
    def before_step(self, x, moment):
        return x + 0.01 * moment.normal(x)


@pytest.mark.parametrize("maker", ["dpm-12", "sde"])
def test_noise_of_those_who_stay_is_not_moved_by_those_who_left(maker):
    """A generator or a recording is asked for the whole batch, so that every draw is the one it would have been."""
    sampler = MAKERS[maker](SDES["vp"], smooth)
    start = scaled_start(SDES["vp"])
    counter = PhiloxNoise(5)

    class Recorded(ReplayNoise):  # the same numbers as a stream
        def normal(self, shape, *, dtype=torch.float32, device=None, draw=0):
            assert tuple(shape) == SHAPE
            return counter.normal(shape, dtype=dtype, device=device, draw=draw)

    expected = sampler.sample(start, noise=counter, hooks=[Noisy()])
    x = sampler.sample(start, noise=Recorded([]), hooks=[Noisy()])
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(sampler.sample(start, noise=TorchNoise(torch.Generator().manual_seed(0)))).all()


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("name", ["vp", "discrete"])
@pytest.mark.parametrize("maker", MAKERS)
def test_the_host_reads_once_a_trial(maker, name, norm):
    def reads(steps):
        sampler = MAKERS[maker](SDES[name], smooth, max_steps=steps, norm=norm, rtol=1e-6, atol=1e-6, denoise=False)
        with host_reads() as found, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            _, info = sampler.sample(scaled_start(SDES[name]), return_info=True)
        assert not info.finished.any()
        return found

    few, many = reads(2), reads(10)
    assert len(many) - len(few) == 8, many
    assert many.count("Tensor.tolist reads a value on the host") >= 10


def test_leaving_the_batch_takes_no_further_read():
    for maker in MAKERS.values():
        sampler, start = maker(SDES["vp"], smooth), scaled_start(SDES["vp"])
        with host_reads() as found:
            _, info = sampler.sample(start, return_info=True)
        trials = int((info.accepted + info.rejected).max())
        assert info.nfe.unique().numel() > 1
        assert len(found) == trials + 1, found  # and one for the check of the result


@pytest.mark.parametrize("maker", MAKERS)
def test_other_dtypes_labels_and_shapes(maker):
    sde = SDES["vp"]
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        x, info = MAKERS[maker](sde, smooth, rtol=0.1, atol=0.1).sample((3, 2, 5), dtype=dtype, return_info=True)
        assert x.dtype == dtype
        assert info.finished.all()
    seen = []

    def model(x, label):
        seen.append(label)
        return smooth(x, label)

    sampler = MAKERS[maker](
        SDES["discrete"], model, convention=Convention("noise", "rounded_timestep"), rtol=0.1, atol=0.1
    )
    sampler.sample((2, 3))
    assert all(label.dtype == torch.int64 for label in seen)
    empty, info = MAKERS[maker](sde, smooth).sample((0, 3), return_info=True)
    assert empty.shape == (0, 3)
    assert info.nfe.shape == (0,)
    alone = MAKERS[maker](sde, smooth).sample((4,))
    assert alone.shape == (4,)


def test_an_output_memory_that_comes_back_is_refused():
    out = torch.zeros(SHAPE)
    for maker in MAKERS.values():
        with pytest.raises(ValueError, match=r"returned memory .*\(at a trial of \w+, t = "):
            maker(SDES["vp"], lambda x, label: out).sample(SHAPE)
        with pytest.raises(ValueError, match=r"like its input, .* at a trial of \w+, t = 1"):
            maker(SDES["vp"], lambda x, label: x[:, :2]).sample(SHAPE)


def test_progress_is_shown(capsys):
    MAKERS["dpm-12"](SDES["vp"], smooth).sample((2, 3), progress=True)
    assert "sampling" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        (RK45Sampler, {"rtol": -1e-3}, ValueError, "RK45Sampler: rtol must be a finite number at least 0, got -0.001"),
        (RK45Sampler, {"rtol": 0, "atol": 0}, ValueError, "rtol or atol must be positive, got 0 for both"),
        (RK45Sampler, {"atol": math.nan}, ValueError, "atol must be a finite number"),
        (RK45Sampler, {"rtol": "1"}, TypeError, "rtol must be a number, got '1'"),
        (RK45Sampler, {"norm": "max"}, ValueError, "norm must be one of sample, batch, got 'max'"),
        (RK45Sampler, {"max_steps": 0}, ValueError, "max_steps must be at least 1, got 0"),
        (RK45Sampler, {"max_steps": 1.5}, TypeError, "max_steps must be an integer"),
        (RK45Sampler, {"first_step": 0.0}, ValueError, "first_step must be a finite number above 0, got 0.0"),
        (RK45Sampler, {"eps": 1.0}, ValueError, "eps must be a finite number above 0 and below 1"),
        (RK45Sampler, {"convention": "noise"}, TypeError, "convention must be a fastscore.Convention"),
        (RK45Sampler, {"convention": Convention("noise", "timestep")}, ValueError, "needs num_scales"),
        (
            DPMSolverAdaptive,
            {"order": 1},
            ValueError,
            r"order must be 2 \(DPM-Solver-12\) or 3 \(DPM-Solver-23\), got 1",
        ),
        (DPMSolverAdaptive, {"algorithm": "ddim"}, ValueError, "algorithm must be one of dpmsolver, dpmsolver"),
        (DPMSolverAdaptive, {"norm": "mean"}, ValueError, "norm must be one of sample, batch, max"),
        (DPMSolverAdaptive, {"h_init": 0}, ValueError, "h_init must be a finite number above 0"),
        (DPMSolverAdaptive, {"safety": -1}, ValueError, "safety must be a finite number above 0"),
        (DPMSolverAdaptive, {"t_err": -1}, ValueError, "t_err must be a finite number at least 0"),
        (DPMSolverAdaptive, {"controller": "pid"}, TypeError, "controller must be a PIDController or None, got str"),
        (AdaptiveSDESampler, {"exponent": 0}, ValueError, "exponent must be a finite number above 0"),
        (AdaptiveSDESampler, {"h_init": math.inf}, ValueError, "h_init must be a finite number above 0"),
        (AdaptiveSDESampler, {"safety": True}, TypeError, "safety must be a number"),
    ],
)
def test_bad_arguments(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(VPSDE(), smooth, **options)


def test_bad_controllers_and_schedules():
    with pytest.raises(ValueError, match=r"accept_safety must be a finite number above 0 and below 2\.57"):
        PIDController(accept_safety=3.0)
    with pytest.raises(TypeError, match="PIDController: icoeff must be a number"):
        PIDController(icoeff=None)
    silent = DiscreteVPSDE(torch.tensor([-0.1, -1.0, -math.inf]), min_log_snr=None)
    with pytest.raises(ValueError, match="no signal left at t = 1"):
        DPMSolverAdaptive(silent, smooth)

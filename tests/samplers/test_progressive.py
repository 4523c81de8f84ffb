"""The clean images on the way, of every sampler."""

import pytest
import torch

import fastscore
from fastscore import VPSDE, Convention, PhiloxNoise
from fastscore.samplers import Hook, ProgressiveGeneration, describe, names
from fastscore.testing.networks import Smooth, assert_reads_nothing_between_steps
from fastscore.testing.statistics import AnalyticModel, mixture_2d, vp_perturbation

TIMES = (1.0, 0.7, 0.3, 0.05, 0.0)
NEEDED = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}


class Everything(Hook):
    """Times and clean images of every call, for each row of the batch."""

    def __init__(self):
        self.seen = {}

    def on_denoised(self, denoised, x, moment):
        rows = range(len(denoised)) if moment.rows is None else moment.rows.tolist()
        for i, row in enumerate(rows):
            self.seen.setdefault(row, []).append((float(moment.t[i]), denoised[i].clone()))


@pytest.mark.parametrize("name", names())
def test_the_first_image_at_or_below_each_time(name):
    adaptive = describe(name).calls == "adaptive"
    options = {"rtol": 1e-2, "atol": 1e-2} if adaptive else {"steps": 24}
    prediction = "denoised" if name == "consistency" else "noise"
    model = AnalyticModel(mixture_2d(), vp_perturbation(), prediction)
    convention = Convention(prediction, "scaled_time")
    sampler = fastscore.sampler(name, VPSDE(), model, convention=convention, **NEEDED.get(name, {}), **options)
    everything, hook = Everything(), ProgressiveGeneration(TIMES)
    x = sampler.sample((4, 2, 1, 1), seed=1, hooks=[everything, hook])
    assert hook.images.shape == (5, 4, 2, 1, 1)
    assert torch.equal(hook.images[-1], x)
    for row, seen in everything.seen.items():
        for k, time in enumerate(TIMES):
            first = next((image for t, image in seen if t <= time + 1e-9), x[row])
            assert torch.equal(hook.images[k, row], first), (time, row)


def test_a_sample_does_not_depend_on_its_batch():
    model = AnalyticModel(mixture_2d(), vp_perturbation(), "noise")
    sampler = fastscore.sampler("rk45", VPSDE(), model, rtol=1e-3, atol=1e-3)
    whole, some = ProgressiveGeneration(TIMES), ProgressiveGeneration(torch.tensor(TIMES))
    start = VPSDE().prior_sample((5, 2, 1, 1), noise=PhiloxNoise(3), dtype=torch.float64)
    _, info = sampler.sample(start, hooks=[whole], return_info=True)
    assert info.nfe.unique().numel() > 1
    sampler.sample(start[[3, 1]], hooks=[some])
    torch.testing.assert_close(some.images, whole.images[:, [3, 1]], rtol=1e-9, atol=1e-9)


def test_a_run_that_is_broken_off_leaves_nothing_behind():
    calls = []

    def model(x, t):
        calls.append(t)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return torch.tanh(x)

    sampler = fastscore.sampler("ddim", VPSDE(), model, steps=6, convention=Convention("noise", "time"))
    hook, fresh = ProgressiveGeneration(TIMES), ProgressiveGeneration(TIMES)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample((2, 3), seed=1, hooks=[hook])
    sampler.sample((3, 3), seed=2, hooks=[hook])
    sampler.sample((3, 3), seed=2, hooks=[fresh])
    assert torch.equal(hook.images, fresh.images)


def test_nothing_is_read_on_the_host():
    def make(model):
        return fastscore.sampler("dpmpp-2m", VPSDE(), model, steps=6, convention=Convention("noise", "time"))

    assert_reads_nothing_between_steps(make, (2, 3, 4, 4), 6, hooks=[ProgressiveGeneration(TIMES)])


def test_later_hooks_are_not_seen():
    class Half(Hook):
        def on_denoised(self, denoised, x, moment):
            return 0.5 * denoised

    sampler = fastscore.sampler("ddim", VPSDE(), Smooth(), steps=4, convention=Convention("noise", "time"))
    before, after = ProgressiveGeneration([1.0]), ProgressiveGeneration([1.0])
    sampler.sample((2, 3), hooks=[before, Half(), after])
    torch.testing.assert_close(after.images, 0.5 * before.images)


@pytest.mark.parametrize("times", [[], 0.5, [[0.5]], [0.1, float("nan")]])
def test_bad_times_are_refused(times):
    with pytest.raises(ValueError, match="times must be finite numbers"):
        ProgressiveGeneration(times)

"""RePaint: pieces of the path are walked several times, so that inpainted pixels fit the known ones."""

import pytest
import torch

from fastscore import VPSDE, Convention, DDPMSampler, DiscreteVPSDE, ReplayNoise
from fastscore.control import Inpainting
from fastscore.samplers import Hook
from fastscore.testing.statistics import AnalyticModel, Gaussian, assert_mean, vp_perturbation

VP = VPSDE()
TIME = vp_perturbation(label_scale=1.0)
NOISE = Convention("noise", "time")
DATA = Gaussian(torch.zeros(2, 1, 1), 0.5 * torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))
KNOWN, MASK = torch.tensor([0.8, 0.0]).reshape(1, 2, 1, 1), torch.tensor([True, False]).reshape(2, 1, 1)


def make(sde=VP, **options):
    return DDPMSampler(sde, AnalyticModel(DATA, TIME, "noise"), convention=NOISE, **options)


@pytest.mark.parametrize(("steps", "resamplings", "jump"), [(6, 3, 2), (7, 2, 3), (4, 2, 10)])
def test_is_the_published_algorithm(steps, resamplings, jump):
    """One level after the other, the path as a list of levels: down, and `jump` levels up by the forward process."""
    sampler = make(steps=steps, resamplings=resamplings, jump=jump)
    times = [float(t) for t in torch.linspace(1.0, VP.sampling_eps, steps, dtype=torch.float64)] + [0.0]
    noise = torch.randn(100, 3, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, draws = noise[0].clone(), iter(noise[1:])

    def level(i):
        return (1.0, 0.0) if i == steps else tuple(float(v) for v in VP.marginal(times[i]))

    visited, made = [], 0
    for first in range(0, steps, jump):
        last = min(first + jump, steps)
        for again in range(resamplings):
            if again:
                (high, high_sigma), (low, low_sigma) = level(first), level(last)
                a = high / low
                x = a * x + (high_sigma**2 - (a * low_sigma) ** 2) ** 0.5 * next(draws)
            for i in range(first, last):
                (alpha, sigma), (alpha_s, sigma_s) = level(i), level(i + 1)
                a = alpha / alpha_s
                b2 = sigma**2 - (a * sigma_s) ** 2
                clean = DATA.denoised(x, torch.full((3,), alpha), torch.full((3,), sigma))
                x = a * sigma_s**2 / sigma**2 * x + alpha_s * b2 / sigma**2 * clean
                if i + 1 < steps:
                    x = x + b2**0.5 * sigma_s / sigma * next(draws)
                visited.append(times[i])
                made += 1
    plan = sampler.plan()
    assert [step.t for step in plan.steps if step.label is not None] == pytest.approx(visited, rel=1e-12)
    assert plan.nfe == made
    result = sampler.sample(noise[0], noise=ReplayNoise(list(noise[1:])))
    torch.testing.assert_close(result, x, rtol=1e-5, atol=1e-5)  # the network is given times in float32


def test_resampling_brings_inpainting_to_the_conditional_law():
    """Of two correlated pixels one is known: replacement alone leaves the other one too close to its own mean."""
    exact = torch.tensor([0.9 * 0.8], dtype=torch.float64).reshape(1, 1, 1)
    options = {"steps": 40, "jump": 4}
    means = []
    for resamplings in (1, 2, 10):
        x = make(**options, resamplings=resamplings).sample((4000, 2, 1, 1), hooks=[Inpainting(KNOWN, MASK)])
        assert torch.equal(x[:, :1], KNOWN[:, :1].expand(4000, 1, 1, 1))
        means.append(float(x[:, 1].mean()))
    print(means)
    assert means[0] < means[1] < means[2]
    assert abs(means[2] - float(exact)) < 0.25 * abs(means[0] - float(exact))


def test_without_a_hook_the_law_is_that_of_the_data():
    x = make(steps=200, resamplings=3).sample((3000, 2, 1, 1))
    assert_mean(x, DATA)
    assert float(torch.cov(x.flatten(1).T.double())[0, 1]) == pytest.approx(0.45, abs=0.05)


def test_levels_and_learned_variance():
    class Times(Hook):
        def __init__(self):
            self.seen = []

        def before_step(self, x, moment):
            self.seen.append(round(float(moment.t[0]) * 100))

    sde = DiscreteVPSDE.linear(100, 1e-3, 0.2)
    model = lambda x, label: torch.cat([x, x.tanh()], 1)  # noqa: E731
    hook = Times()
    sampler = DDPMSampler(sde, model, steps=4, resamplings=2, jump=2, variance="learned_range")
    sampler.sample((2, 3, 4, 4), hooks=[hook])
    assert hook.seen == [100, 75, 49, 100, 75, 49, 25, 0, 49, 25]


@pytest.mark.parametrize("option", ["resamplings", "jump"])
def test_refusals(option):
    with pytest.raises(ValueError, match=f"DDPMSampler: {option} must be at least 1, got 0"):
        make(steps=4, **{option: 0})
    with pytest.raises(TypeError, match=f"DDPMSampler: {option} must be an integer, got 2.0"):
        make(steps=4, **{option: 2.0})

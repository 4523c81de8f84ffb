"""RePaint: pieces of the path are walked several times, so that inpainted pixels fit the known ones."""

import itertools

import pytest
import torch

import fastscore
from fastscore import VPSDE, Convention, DDIMInverseSampler, DDPMSampler, DiscreteVPSDE, ReplayNoise
from fastscore.control import Inpainting, Resampling
from fastscore.samplers import Hook, describe, names
from fastscore.testing.statistics import AnalyticModel, Gaussian, assert_mean, vp_perturbation

VP = VPSDE()
TIME = vp_perturbation(label_scale=1.0)
NOISE = Convention("noise", "time")
DATA = Gaussian(torch.zeros(2, 1, 1), 0.5 * torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))
KNOWN, MASK = torch.tensor([0.8, 0.0]).reshape(1, 2, 1, 1), torch.tensor([True, False]).reshape(2, 1, 1)


def make(steps, name="ddpm", **options):
    sampler = fastscore.sampler(name, VP, AnalyticModel(DATA, TIME, "noise"), steps=steps, convention=NOISE)
    return Resampling(sampler, **options)


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


@pytest.mark.parametrize(
    ("name", "left"), [("ddpm", 0.25), ("ddim", 0.25), ("edm", 0.25), ("pc", 0.25), ("euler-maruyama", 0.35)]
)
def test_resampling_brings_inpainting_to_the_conditional_law(name, left):
    """Of two correlated pixels one is known: replacement alone leaves the other one too close to its own mean."""
    exact = torch.tensor([0.9 * 0.8], dtype=torch.float64).reshape(1, 1, 1)
    options = {"steps": 40, "jump": 4}
    means = []
    for resamplings in (1, 2, 10):
        x = make(**options, name=name, resamplings=resamplings).sample((4000, 2, 1, 1), hooks=[Inpainting(KNOWN, MASK)])
        assert torch.equal(x[:, :1], KNOWN[:, :1].expand(4000, 1, 1, 1))
        means.append(float(x[:, 1].mean()))
    print(means)
    assert means[0] < means[1] < means[2]
    assert abs(means[2] - float(exact)) < left * abs(means[0] - float(exact))


def test_without_a_hook_the_law_is_that_of_the_data():
    x = make(200, resamplings=3).sample((3000, 2, 1, 1))
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
    sampler = Resampling(DDPMSampler(sde, model, steps=4, variance="learned_range"), resamplings=2, jump=2)
    sampler.sample((2, 3, 4, 4), hooks=[hook])
    assert hook.seen == [100, 75, 49, 100, 75, 49, 25, 0, 49, 25]


@pytest.mark.parametrize("option", ["resamplings", "jump"])
def test_refusals(option):
    with pytest.raises(ValueError, match=f"Resampling: {option} must be at least 1, got 0"):
        make(4, **{option: 0})
    with pytest.raises(TypeError, match=f"Resampling: {option} must be an integer, got 2.0"):
        make(4, **{option: 2.0})


MULTISTEP = (
    *("dpm-solver-2m", "dpm-solver-3m", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m-sde", "dpmpp-3m-sde", "unipc-1", "unipc-2"),
    *("unipc-3", "lms", "lms-2", "lms-3"),
)
ONE_STEP = [name for name in names() if name not in MULTISTEP and describe(name).calls != "adaptive"]


@pytest.mark.parametrize("name", [name for name in ONE_STEP if "langevin" not in name])
def test_steps_of_any_sampler_are_made_again(name):
    """Every five of its steps three times; with one resampling, it is the sampler itself."""
    once, again = make(24, name, resamplings=1), make(24, name, resamplings=3, jump=5)
    assert once.plan().steps == once.sampler.plan().steps
    plan, rows = again.plan(), list(once.plan().steps)
    back = [i for i, step in enumerate(plan.steps) if step.name == "resampling"]
    assert plan.nfe == 3 * once.plan().nfe
    assert [step for step in plan.steps if step.name != "resampling"][: back[0]] == rows[: back[0]]
    lowest = list(itertools.accumulate((row.t_next for row in rows if not row.stage), min, initial=1.0))
    made = sum(low < high for high, low in itertools.pairwise(lowest))
    assert len(back) == 2 * -(-made // 5)
    assert len(plan.steps) == 3 * len(rows) + len(back)
    for i in back:
        step, begun = plan.steps[i], plan.steps[i + 1]
        assert (step.t, step.t_next) == (plan.steps[i - 1].t_next, begun.t)
        a, b = step.coefficients
        alpha, sigma = (float(value) for value in VP.marginal(begun.t))
        low, low_sigma = (1.0, 0.0) if step.t == 0 else (float(value) for value in VP.marginal(step.t))
        assert a * low == pytest.approx(alpha, rel=1e-12)
        assert (a * low_sigma) ** 2 + b**2 == pytest.approx(sigma**2, rel=1e-12)


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_samplers_are_refused(name):
    with pytest.raises(ValueError, match="sampler must make every step from its state alone, got a multistep method"):
        make(6, name)


def test_what_has_no_steps_to_make_again_is_refused():
    model = AnalyticModel(DATA, TIME, "noise")
    with pytest.raises(TypeError, match="sampler must be a sampler with fixed steps, got RK45Sampler"):
        Resampling(fastscore.sampler("rk45", VP, model, convention=NOISE))
    with pytest.raises(ValueError, match="sampler must go down in time, got DDIMInverseSampler"):
        Resampling(DDIMInverseSampler(VP, model, steps=4, convention=NOISE))

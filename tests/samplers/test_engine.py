"""The table, the loop and the hooks, by samplers made for it: what is folded, kept, clipped, handed out and refused."""

import itertools
import math

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, NonFiniteError, PhiloxNoise, SubVPSDE
from fastscore.noise import ReplayNoise
from fastscore.samplers import FixedStepSampler, Hook
from fastscore.samplers.grid import nodes, time_grid
from fastscore.samplers.table import Table
from fastscore.testing.networks import Smooth
from fastscore.testing.traffic import traffic_per_step

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(50, 1e-3, 0.2)}
SHAPE = (3, 2, 4, 4)


class TwoStep(FixedStepSampler):
    """Adams-Bashforth of order 2 in the clean image: keeps a prediction beyond its step."""

    def _tabulate(self, table):
        grid = nodes(self.sde, time_grid("TwoStep", self.sde, "log_snr", self.steps, self.eps))
        old = None
        for here, there in itertools.pairwise(grid):
            clean = table.evaluate("denoised", here, keep=True)
            slope = clean if old is None else 1.5 * clean - 0.5 * old
            ratio = there.sigma / here.sigma
            table.step(ratio * table.x + (there.alpha - ratio * here.alpha) * slope, there, name="two_step")
            old = clean


class TwoStage(FixedStepSampler):
    """Heun's method in sigma / alpha, with noise at the inner point if `inner` is not 0."""

    inner = 0.0

    def _tabulate(self, table):
        grid = nodes(self.sde, time_grid("TwoStage", self.sde, "karras", self.steps, self.eps))
        for here, there in itertools.pairwise(grid):
            step, y = there.ratio - here.ratio, table.x / here.alpha
            first = table.evaluate("noise", here)
            table.stage(there.alpha * (y + step * first), there, noise=self.inner, name="euler")
            second = table.evaluate("noise", there)
            table.step(there.alpha * (y + step / 2 * (first + second)), there, name="heun")


class NoisyStage(TwoStage):
    inner = 0.3


def clean_image(sampler, x, t, network=None):
    """By Tweedie's formula, from the network itself."""
    from fastscore.reference.samplers._network import denoised

    return denoised(sampler.sde, network or sampler.model, x, t, sampler.convention)


def literal(sampler, x, noise):
    """The two samplers above, written out; clipped as the sampler says, hooks of none."""
    spacing = "log_snr" if isinstance(sampler, TwoStep) else "karras"
    grid = nodes(sampler.sde, time_grid("literal", sampler.sde, spacing, sampler.steps, sampler.eps))

    def clean(x, node):
        result = clean_image(sampler, x, node.t)
        return result if sampler.clip is None else result.clamp(-sampler.clip, sampler.clip)

    old, draw = None, 0
    for here, there in itertools.pairwise(grid):
        first = clean(x, here)
        if isinstance(sampler, TwoStep):
            slope = first if old is None else 1.5 * first - 0.5 * old
            x, old = there.sigma / here.sigma * (x - here.alpha * slope) + there.alpha * slope, first
            continue
        eps = (x - here.alpha * first) / here.sigma
        point = there.alpha * (x / here.alpha + (there.ratio - here.ratio) * eps)
        draw += 1
        if sampler.inner:
            point = point + sampler.inner * noise.normal(x.shape, dtype=x.dtype, draw=draw)
        draw += 1
        second = (point - there.alpha * clean(point, there)) / there.sigma
        x = there.alpha * (x / here.alpha + (there.ratio - here.ratio) / 2 * (eps + second))
    return x


class Watch(Hook):
    """Notes what it sees and changes nothing."""

    def __init__(self):
        self.seen = []

    def before_step(self, x, moment):
        self.seen.append(("before", moment.index, moment.t.clone(), x.clone()))

    def on_denoised(self, denoised, x, moment):
        self.seen.append(("denoised", moment.index, moment.t.clone(), denoised.clone(), x.clone()))

    def after_step(self, x, moment):
        self.seen.append(("after", moment.index, moment.t.clone(), x.clone()))


@pytest.mark.parametrize("make", [TwoStep, TwoStage, NoisyStage])
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_rows_do_what_is_written(make, prediction, sde, clip):
    label = "timestep" if sde == "discrete" else "log_sigma"
    sampler = make(SDES[sde], Smooth(), steps=5, eps=0.05, clip=clip, convention=Convention(prediction, label))
    noise = PhiloxNoise(3)
    start = sampler.sde.prior_sample(SHAPE, noise=noise, dtype=torch.float64)
    expected = literal(sampler, start, noise)
    scale = float(expected.abs().max())
    hook = Watch()
    for backend in ("cpu", "reference"):
        with fastscore.backend(backend):
            torch.testing.assert_close(sampler.sample(start, seed=3), expected, rtol=1e-9, atol=1e-11 * scale)
    torch.testing.assert_close(sampler.sample(start, seed=3, hooks=[hook]), expected, rtol=1e-9, atol=1e-11 * scale)
    assert sum(kind == "denoised" for kind, *_ in hook.seen) == sampler.plan().nfe


@pytest.mark.parametrize("make", [TwoStep, TwoStage])
def test_hooks_see_states_times_and_clean_images(make):
    sampler = make(SDES["vp"], Smooth(), steps=4, eps=0.05)
    hook, start = Watch(), torch.randn(SHAPE, dtype=torch.float64)
    result = sampler.sample(start, hooks=[hook])
    kinds = "".join(kind[0] for kind, *_ in hook.seen)
    assert kinds == ("bda" if make is TwoStep else "bdda") * 4
    befores = [entry for entry in hook.seen if entry[0] == "before"]
    afters = [entry for entry in hook.seen if entry[0] == "after"]
    assert torch.equal(befores[0][3], start)
    assert torch.equal(afters[-1][3], result)
    for after, before in zip(afters, befores[1:], strict=False):
        assert torch.equal(after[3], before[3])
        assert torch.equal(after[2], before[2])
    assert befores[0][2].tolist() == [1.0] * SHAPE[0]
    assert afters[-1][2].tolist() == [0.05] * SHAPE[0]
    for _, _, t, clean, point in (entry for entry in hook.seen if entry[0] == "denoised"):
        torch.testing.assert_close(clean, clean_image(sampler, point, float(t[0])), rtol=1e-9, atol=1e-9)


def replacing(name, function):
    """A hook whose method `name` returns function(what it is given, moment)."""
    return type("Replacing", (Hook,), {name: lambda self, *args: function(args[0], args[-1])})()


@pytest.mark.parametrize("make", [TwoStep, TwoStage])
def test_what_a_hook_returns_takes_the_place(make):
    sampler = make(SDES["vp"], Smooth(), steps=6, eps=0.05)
    start = torch.randn(SHAPE, dtype=torch.float64)
    last = sampler.sample(start, hooks=[replacing("after_step", lambda x, m: torch.full_like(x, 7.0))])
    assert bool((last == 7).all())
    twice = [replacing("before_step", lambda x, m: 2 * x), replacing("before_step", lambda x, m: x / 2)]
    torch.testing.assert_close(sampler.sample(start, hooks=twice), sampler.sample(start), rtol=1e-12, atol=1e-12)
    fixed = torch.randn(SHAPE, dtype=torch.float64)
    drawn = sampler.sample(start, hooks=[replacing("on_denoised", lambda d, m: fixed)])
    # with the clean image known, every consistent solver lands on alpha x_0 + sigma eps with the eps of the start
    (a1, s1), (a0, s0) = ([float(v) for v in sampler.sde.marginal(t)] for t in (1.0, 0.05))
    torch.testing.assert_close(drawn, a0 * fixed + s0 * (start - a1 * fixed) / s1, rtol=1e-9, atol=1e-9)
    assert torch.equal(start, start.clone())


def test_the_moment_draws_noise_of_its_own():
    sampler = TwoStep(SDES["vp"], Smooth(), steps=3, eps=0.05)
    drawn = []
    hook = replacing("after_step", lambda x, m: drawn.append((m.normal(x), m.normal(x), m.normal(x, 1))))
    sampler.sample(SHAPE, seed=5, hooks=[hook])
    for first, again, other in drawn:
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert not torch.equal(drawn[0][0], drawn[1][0])
    part = []
    hook = replacing("after_step", lambda x, m: part.append(m.normal(x)))
    sampler.sample((1, *SHAPE[1:]), noise=PhiloxNoise(5, samples=[2]), hooks=[hook])
    assert torch.equal(part[0][0], drawn[0][0][2])
    with pytest.raises(ValueError, match=r"draw must lie in \[0, 256\), got 256"):
        sampler.sample(SHAPE, hooks=[replacing("after_step", lambda x, m: m.normal(x, 256))])


@pytest.mark.parametrize(
    ("hook", "error", "message"),
    [
        (object(), TypeError, r"hooks\[0\] must be a fastscore.samplers.Hook, got object"),
        (
            replacing("after_step", lambda x, m: 3),
            TypeError,
            "after_step: a hook must return a tensor or None, got int",
        ),
        (replacing("before_step", lambda x, m: x[:1]), ValueError, "before_step: a hook must return a tensor like"),
        (replacing("on_denoised", lambda d, m: d[:, :1]), ValueError, "on_denoised: a hook must return a tensor like"),
    ],
)
def test_bad_hooks(hook, error, message):
    with pytest.raises(error, match=message):
        TwoStep(SDES["vp"], Smooth(), steps=3).sample(SHAPE, hooks=[hook])


def test_outputs_in_use_must_stay():
    """A network that answers into one buffer would overwrite what the solver still needs."""
    buffer = torch.empty(SHAPE)

    def network(x, label):
        return torch.tanh(x, out=buffer)

    convention = Convention("denoised", "time")
    with pytest.raises(ValueError, match="memory that it had returned before"):
        TwoStep(SDES["vp"], network, steps=3, convention=convention).sample(SHAPE)
    with pytest.raises(ValueError, match="or its input"):
        TwoStep(SDES["vp"], lambda x, label: x, steps=3, convention=convention).sample(SHAPE)
    # where the prediction is converted, the conversion is what is kept
    noise = Convention("noise", "time")
    sampled = TwoStep(SDES["vp"], network, steps=3, convention=noise).sample(SHAPE)
    fresh = TwoStep(SDES["vp"], lambda x, label: torch.tanh(x), steps=3, convention=noise).sample(SHAPE)
    assert torch.equal(sampled, fresh)


def test_the_network_output_is_left_alone():
    """Conversion and clipping happen elsewhere, also for a network that returns a tensor it holds."""
    held = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = held.clone()
    for hooks, make, clip in itertools.product(([], [Watch()]), (TwoStep, TwoStage), (None, 0.5)):
        turns = itertools.cycle(held.unbind(0))
        sampler = make(
            SDES["vp"], lambda x, label, t=turns: next(t), steps=2, clip=clip, convention=Convention("noise", "time")
        )
        if make is TwoStep or clip or hooks:  # four outputs, two tensors: converted at once
            sampler.sample(SHAPE, hooks=hooks)
        else:
            with pytest.raises(ValueError, match="memory that it had returned before"):
                sampler.sample(SHAPE, hooks=hooks)
        assert torch.equal(held, before)


@pytest.mark.parametrize(("prediction", "moved"), [("denoised", 4), ("noise", 5)])
def test_traffic_of_two_steps(prediction, moved):
    """State, two predictions in, state out; one more where the prediction is converted and kept."""
    shape = (4, 3, 32, 32)  # so large that the labels, which lie in memory for all steps, do not count
    held = itertools.cycle(torch.randn(4, *shape).unbind(0))
    convention = Convention(prediction, "time")
    count = traffic_per_step(
        lambda n: TwoStep(SDES["vp"], lambda x, label: next(held), steps=n, convention=convention).sample(shape),
        torch.empty(shape),
        (6, 12),
    )
    assert count.moved == moved, count.by_op
    assert count.full == 1
    assert count.calls <= 5, count.by_op


def test_a_plan_prints_every_coefficient():
    text = str(TwoStage(SDES["vp"], Smooth(), steps=2, eps=0.05).plan())
    assert text.startswith("4 network calls")
    assert text.count("euler*") == 2
    assert text.count("heun ") == 2
    noisy = str(NoisyStage(SDES["ve"], Smooth(), steps=1, convention=Convention("edm", "log_sigma")).plan())
    assert "point = " in noisy
    kept = str(TwoStep(SDES["vp"], Smooth(), steps=2, clip=1.0, convention=Convention("edm", "log_sigma")).plan())
    assert "x0 = " in kept
    assert "b1 = " in kept


def test_a_recording_is_asked_for_rows_that_draw():
    sampler = NoisyStage(SDES["vp"], Smooth(), steps=3, eps=0.05)
    noise = ReplayNoise(torch.randn(3, *SHAPE).unbind(0))
    sampler.sample(torch.randn(SHAPE), noise=noise)
    assert noise.position == 3


def test_non_finite_points_are_found_where_they_begin():
    calls = itertools.count()

    def network(x, label):
        return x * (math.nan if next(calls) == 2 else 0.1)

    with pytest.raises(NonFiniteError, match=r"after step 2 \(euler\) .* the network output there was not finite"):
        TwoStage(SDES["vp"], network, steps=3).sample(SHAPE, check_finite=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "TwoStep: steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "TwoStep: steps must be an integer, got 2.0"),
        ({"steps": 2, "clip": 0}, ValueError, "TwoStep: clip must be a positive number or None, got 0"),
        ({"steps": 2, "clip": math.inf}, ValueError, "clip must be a positive number or None, got inf"),
        ({"steps": 2, "eps": 1.5}, ValueError, "eps must be a finite number above 0 and below 1, got 1.5"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        TwoStep(SDES["vp"], Smooth(), **options)


def test_a_table_refuses_what_cannot_be_run():
    grid = nodes(SDES["vp"], torch.tensor([1.0, 0.5, 0.1]))
    table = Table(SDES["vp"], Convention("noise", "time"))
    old = table.evaluate("denoised", grid[0])
    table.step(old, grid[1])
    table.evaluate("noise", grid[1])
    with pytest.raises(AssertionError, match="the state is not any more"):
        table.step(table.x + old, grid[2])


def test_runs_inside_runs_do_not_share_memory():
    """A sampler keeps the memory that it works in for the next run, not for one that goes on at the same time."""
    sampler = TwoStep(SDES["vp"], Smooth(), steps=4, eps=0.05, convention=Convention("noise", "time"))
    alone = [sampler.sample(SHAPE, seed=seed) for seed in (0, 1)]
    inner = []

    def callback(index, step, x):
        inner.append(sampler.sample(SHAPE, seed=1))

    assert torch.equal(sampler.sample(SHAPE, seed=0, callback=callback), alone[0])
    assert all(torch.equal(x, alone[1]) for x in inner)
    for shape in ((2, 3, 5, 5), SHAPE):
        assert torch.equal(
            sampler.sample(shape, seed=0),
            type(sampler)(SDES["vp"], Smooth(), steps=4, eps=0.05, convention=Convention("noise", "time")).sample(
                shape, seed=0
            ),
        )


def test_runs_in_and_out_of_inference_mode():
    sampler = TwoStep(SDES["vp"], Smooth(), steps=4, eps=0.05, convention=Convention("noise", "time"))
    results = []
    for mode in (True, False, True, False):
        with torch.inference_mode(mode):
            results.append(sampler.sample(SHAPE, seed=0))
    assert all(torch.equal(x, results[0]) for x in results)

"""Every sampler by its name: made, run, safe with few steps, cheap, and refused with a reason."""

import itertools
import warnings

import pytest
import torch

import fastscore
from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, SubVPSDE
from fastscore.samplers import FixedStepSampler, Hook, describe, names
from fastscore.testing.statistics import AnalyticModel, mixture_2d, ve_perturbation, vp_perturbation
from fastscore.testing.traffic import no_host_sync, traffic_per_step

SDES = {"ve": VESDE(0.01, 10.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": DiscreteVPSDE.linear(100, 1e-3, 0.2)}
NEEDED = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}
CHAINS = ("pc", "reverse-diffusion", "ancestral", "langevin-corrector")  # VP has none of 20 steps or fewer
FIXED = [name for name in names() if describe(name).calls != "adaptive"]
ADAPTIVE = [name for name in names() if describe(name).calls == "adaptive"]


def network(x, label):
    return torch.tanh(x)


def make(name, sde="vp", model=network, **options):
    convention = {"discrete": Convention("noise", "timestep"), "ve": Convention("score", "sigma")}.get(sde)
    convention = convention or Convention("noise", "time")
    if name == "consistency":
        convention = Convention("denoised", convention.label)
    return fastscore.sampler(name, SDES[sde], model, **{"convention": convention, **NEEDED.get(name, {}), **options})


@pytest.mark.parametrize("name", names())
def test_names_are_described(name):
    entry = describe(name)
    assert entry.summary
    assert "\n" not in entry.summary
    assert set(entry.options) <= set(entry.accepted)
    assert entry.required == list(NEEDED.get(name, {}))


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_few_steps_are_safe(name, sde, steps):
    if name in CHAINS and sde == "vp":
        with pytest.raises(ValueError, match="does not exist"):
            make(name, sde, steps=steps)
        return
    sampler = make(name, sde, steps=steps)
    x, info = sampler.sample((2, 3, 4, 4), return_info=True)
    assert bool(torch.isfinite(x).all())
    assert info.nfe == sampler.plan().nfe


@pytest.mark.parametrize("name", FIXED)
def test_network_calls_are_as_described(name):
    for steps in (24, 25):
        allowed = eval(
            describe(name).calls.replace("2 N", "2 * N").replace("4 N", "4 * N").replace("5 N", "5 * N"), {"N": steps}
        )
        calls = make(name, steps=steps).plan().nfe
        assert calls == allowed


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_samplers_arrive(name, sde):
    data = mixture_2d()
    if sde == "ve":
        model, convention = AnalyticModel(data, ve_perturbation, "score"), None
    elif sde == "discrete":
        model, convention = (lambda x, label: x * SDES[sde].sigma(0.5)), Convention("noise", "timestep")
    else:
        model, convention = AnalyticModel(data, vp_perturbation(subvp=sde == "subvp"), "noise"), None
    sampler = fastscore.sampler(name, SDES[sde], model, convention=convention, rtol=1e-2, atol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, info = sampler.sample((4, 2, 1, 1), return_info=True)
    assert bool(torch.isfinite(x).all())
    assert bool(info.finished.all())


class Count(Hook):
    def __init__(self):
        self.calls = [0, 0, 0]

    def before_step(self, x, moment):
        self.calls[0] += 1

    def on_denoised(self, denoised, x, moment):
        self.calls[1] += 1

    def after_step(self, x, moment):
        self.calls[2] += 1


@pytest.mark.parametrize("name", names())
def test_hooks_work_with_every_sampler(name):
    """They are called, and a hook that changes nothing changes nothing."""
    options = {} if name in ADAPTIVE else {"steps": 24}
    sampler = make(name, "vp", **options)
    start = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hook = Count()
    plain, info = sampler.sample(start, return_info=True)
    hooked = sampler.sample(start, hooks=[hook])
    torch.testing.assert_close(hooked, plain, rtol=1e-8, atol=1e-8)
    before, denoised, after = hook.calls
    assert before == after > 0
    if name in FIXED:
        assert denoised == info.nfe


@pytest.mark.parametrize("name", FIXED)
def test_a_step_costs_little(name):
    """Traffic and operators per step, network left out; no value is read on the host between steps."""
    shape = (4, 3, 32, 32)
    held = itertools.cycle(torch.randn(8, *shape).unbind(0))
    prediction = Convention("denoised", "time")  # what converts is counted below
    samplers = {n: make(name, model=lambda x, label: next(held), steps=n, convention=prediction) for n in (24, 28)}
    count = traffic_per_step(lambda n: samplers[n].sample(shape), torch.empty(shape), (24, 28))
    rows = (len(samplers[28].plan().steps) - len(samplers[24].plan().steps)) / 4
    order = max((max(step.ages, default=0) + 1 for step in samplers[24].plan().steps), default=1)
    print(f"{name}: {count.moved:.2f} state sizes, {count.calls:.2f} operators in {rows:g} rows, order {order}")
    langevin = sum(step.kind == "langevin" for step in samplers[28].plan().steps) > 0
    assert count.moved <= rows * (3 + order) + langevin + 0.1  # Langevin's norms come first
    assert count.full <= rows + 0.1
    assert count.calls <= 5 * rows


@pytest.mark.parametrize("name", FIXED)
def test_no_value_is_read_in_the_loop(name):
    region = no_host_sync()
    sampler = make(name, steps=24)
    left = sampler.plan().nfe

    def watched(x, label):
        nonlocal left
        if left == sampler.plan().nfe:
            region.__enter__()
        left -= 1
        if left == 0:
            region.__exit__(None, None, None)
        return torch.tanh(x)

    sampler.model = watched
    sampler.sample((2, 3, 4, 4))
    assert left == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: fastscore.sampler("dpm++2m", None, None),
            ValueError,
            "there is no sampler 'dpm\\+\\+2m'; did you mean",
        ),
        (lambda: make("ddim", schnorr=1), TypeError, "ddim has no option 'schnorr'; it takes steps, "),
        (lambda: make("rk45", steps=3), TypeError, "rk45 has no option 'steps'; it takes rtol"),
        (
            lambda: fastscore.sampler("langevin", SDES["vp"], network),
            TypeError,
            "langevin needs the option 'step_size'",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_options_override_the_name():
    assert fastscore.sampler("dpmpp-2m", SDES["vp"], network, order=1, steps=4).order == 1
    assert isinstance(make("dpmpp-2m"), FixedStepSampler)

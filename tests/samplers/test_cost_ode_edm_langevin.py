"""What a step of the ODE, EDM, ancestral and Langevin samplers costs: traffic, operators, host reads."""

import pytest
import torch

from fastscore import (
    VESDE,
    VPSDE,
    AnnealedLangevinSampler,
    EDMSampler,
    EulerAncestralSampler,
    LangevinSampler,
    ODESampler,
)
from fastscore.testing.networks import Held, assert_reads_nothing_between_steps
from fastscore.testing.traffic import traffic_per_step

SHAPE = (4, 3, 8, 8)
SDES = {"ve": VESDE(), "vp": VPSDE()}


# sampler of n steps, network calls a step, state sizes moved: each row reads the state and what it uses, and writes one
COSTS = {
    "euler": (lambda sde, net, n: ODESampler(sde, net, steps=n, method="euler"), 1, 3),
    "heun": (lambda sde, net, n: ODESampler(sde, net, steps=n, method="heun"), 2, 3 + 4),
    "rk4": (lambda sde, net, n: ODESampler(sde, net, steps=n, method="rk4"), 4, 3 + 4 + 5 + 6),
    "edm": (lambda sde, net, n: EDMSampler(sde, net, steps=n), 2, 3 + 4),
    "edm euler": (lambda sde, net, n: EDMSampler(sde, net, steps=n, order=1), 1, 3),
    "edm midpoint": (lambda sde, net, n: EDMSampler(sde, net, steps=n, alpha=0.5), 2, 3 + 3),
    "edm churned": (lambda sde, net, n: EDMSampler(sde, net, steps=n, s_churn=1e9), 2, 3 + 4),
    "ancestral": (lambda sde, net, n: EulerAncestralSampler(sde, net, steps=n), 1, 3),
    "ancestral 2": (lambda sde, net, n: EulerAncestralSampler(sde, net, steps=n, order=2), 2, 3 + 3),
    "langevin": (lambda sde, net, n: LangevinSampler(sde, net, steps=n, step_size=1e-6), 1, 3),
    "annealed": (
        lambda sde, net, n: AnnealedLangevinSampler(sde, net, steps=n, inner_steps=2, step_size=1e-6),
        2,
        3 + 3,
    ),
}
every_sampler = pytest.mark.parametrize("name", COSTS)
every_sde = pytest.mark.parametrize("sde_name", SDES)


@every_sampler
@every_sde
def test_a_step_moves_the_least_it_can(name, sde_name):
    make, calls, moved = COSTS[name]
    if (name, sde_name) == ("rk4", "ve"):
        moved -= 1 + 2  # the drift is zero, and a slope has no state in it
    samplers = {n: make(SDES[sde_name], Held(SHAPE), n) for n in (4, 8)}
    count = traffic_per_step(lambda n: samplers[n].sample(SHAPE, seed=0), torch.empty(SHAPE))
    assert count.moved == moved, count.by_op
    assert count.full == count.calls == calls, count.by_op  # one kernel a network call, and nothing beside it


@every_sampler
@every_sde
def test_nothing_is_read_on_the_host_between_steps(name, sde_name):
    make, _, _ = COSTS[name]
    calls = make(SDES[sde_name], Held(SHAPE), 5).plan().nfe
    assert_reads_nothing_between_steps(lambda model: make(SDES[sde_name], model, 5), SHAPE, calls)

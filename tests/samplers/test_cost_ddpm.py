"""What a step of DDIM, ancestral and consistency sampling may cost: memory traffic, operators, host reads."""

import pytest
import torch

from fastscore import VESDE, ConsistencySampler, DDIMInverseSampler, DDIMSampler, DDPMSampler, DiscreteVPSDE
from fastscore.samplers import DynamicThresholding
from fastscore.testing.networks import Held, assert_reads_nothing_between_steps
from fastscore.testing.traffic import traffic_per_step

SDE = DiscreteVPSDE.linear()
SHAPE = (4, 3, 8, 8)
# sampler, state sizes that a step may move: state read and written, outputs read
COSTS = {
    "ddim": (lambda model, n: DDIMSampler(SDE, model, steps=n), 3),
    "ddim, eta": (lambda model, n: DDIMSampler(SDE, model, steps=n, eta=0.5), 3),
    "ddim, clip": (lambda model, n: DDIMSampler(SDE, model, steps=n, eta=0.5, clip=1.0), 3),
    "ddim inverse": (lambda model, n: DDIMInverseSampler(SDE, model, steps=n), 3),
    "ddpm": (lambda model, n: DDPMSampler(SDE, model, steps=n), 3),
    "ddpm, clip": (lambda model, n: DDPMSampler(SDE, model, steps=n, clip=1.0), 3),
    "ddpm, learned": (lambda model, n: DDPMSampler(SDE, model, steps=n, variance="learned_range"), 4),
    "ddpm, learned, clip": (
        lambda model, n: DDPMSampler(SDE, model, steps=n, variance="learned_range", clip=1.0),
        4,
    ),
    "consistency": (lambda model, n: ConsistencySampler(VESDE(), model, steps=n), 3),
    "consistency, clip": (lambda model, n: ConsistencySampler(VESDE(), model, steps=n, clip=1.0), 3),
}


def channels(name):
    """Of what the network returns."""
    return 6 if "learned" in name else 3


@pytest.mark.parametrize("name", COSTS)
def test_traffic_and_operators(name):
    make, moved = COSTS[name]
    model = Held((SHAPE[0], channels(name), *SHAPE[2:]))
    count = traffic_per_step(lambda n: make(model, n).sample(torch.zeros(SHAPE)), torch.empty(SHAPE))
    assert 0 < count.moved <= moved, count.by_op
    assert count.full == 1, count.by_op
    assert count.calls <= 5, count.by_op


def test_what_the_noise_beside_the_clipped_image_costs():
    """`clipped_noise=False` needs clean image and output at once: one more pass, as documented."""
    count = traffic_per_step(
        lambda n: DDIMSampler(SDE, Held(SHAPE), steps=n, clip=1.0, clipped_noise=False).sample(torch.zeros(SHAPE)),
        torch.empty(SHAPE),
    )
    assert count.moved <= 9, count.by_op


@pytest.mark.parametrize("hooks", [[], [DynamicThresholding()]], ids=["plain", "thresholding"])
@pytest.mark.parametrize("name", COSTS)
def test_no_host_read_between_steps(name, hooks):
    make, _ = COSTS[name]
    assert_reads_nothing_between_steps(lambda model: make(model, 6), SHAPE, 6, channels(name), hooks=hooks)

"""What a step of DDIM, ancestral and consistency sampling may cost: memory traffic, operators, host reads."""

import itertools

import pytest
import torch

from fastscore import VESDE, ConsistencySampler, DDIMInverseSampler, DDIMSampler, DDPMSampler, DiscreteVPSDE
from fastscore.samplers import DynamicThresholding
from fastscore.testing.traffic import no_host_sync, traffic_per_step

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


class Holding(torch.nn.Module):
    """A network that costs nothing: returns one of two tensors that it holds."""

    def __init__(self, channels=3):
        super().__init__()
        shape = (SHAPE[0], channels, *SHAPE[2:])
        self.outputs = itertools.cycle(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind())

    def forward(self, x, label):
        return next(self.outputs)


def holding(name):
    return Holding(6 if "learned" in name else 3)


@pytest.mark.parametrize("name", COSTS)
def test_traffic_and_operators(name):
    make, moved = COSTS[name]
    count = traffic_per_step(lambda n: make(holding(name), n).sample(torch.zeros(SHAPE)), torch.empty(SHAPE))
    assert 0 < count.moved <= moved, count.by_op
    assert count.full == 1, count.by_op
    assert count.calls <= 5, count.by_op


def test_what_the_noise_beside_the_clipped_image_costs():
    """`clipped_noise=False` needs clean image and output at once: one more pass, as documented."""
    count = traffic_per_step(
        lambda n: DDIMSampler(SDE, Holding(), steps=n, clip=1.0, clipped_noise=False).sample(torch.zeros(SHAPE)),
        torch.empty(SHAPE),
    )
    assert count.moved <= 9, count.by_op


class Watched(Holding):
    """Forbids host reads from its first call to its last, number `calls`."""

    def __init__(self, calls, channels):
        super().__init__(channels)
        self.left, self.region = calls, no_host_sync()
        self.first = calls

    def forward(self, x, label):
        if self.left == self.first:
            self.region.__enter__()
        self.left -= 1
        if self.left == 0:
            self.region.__exit__(None, None, None)
        return super().forward(x, label)


@pytest.mark.parametrize("hooks", [[], [DynamicThresholding()]], ids=["plain", "thresholding"])
@pytest.mark.parametrize("name", COSTS)
def test_no_host_read_between_steps(name, hooks):
    model = Watched(6, 6 if "learned" in name else 3)
    try:
        COSTS[name][0](model, 6).sample(torch.zeros(SHAPE), hooks=hooks)
    finally:
        if 0 < model.left < 6:
            model.region.__exit__(None, None, None)
    assert model.left == 0

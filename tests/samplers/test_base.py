"""What runs of samplers do to the network meanwhile, and give back."""

import pytest
import torch
from torch import nn

import fastscore
from fastscore.samplers.base import without_parameter_gradients

SDE, NOISE = fastscore.VPSDE(), fastscore.Convention("noise", label="scaled_time")


class Network(nn.Module):
    """Says at each call which of its parameters need a gradient."""

    def __init__(self):
        super().__init__()
        self.trained, self.fixed = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.seen = []

    def forward(self, x, times):
        self.seen.append([p.requires_grad for p in self.parameters()])
        return self.trained * self.fixed * x


def test_parameters_need_no_gradient_meanwhile():
    network = Network()
    with without_parameter_gradients(network):
        assert not any(p.requires_grad for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [True, False]
    with without_parameter_gradients(lambda x, times: x):
        pass  # a function has none


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_a_likelihood_asks_for_none(mode):
    network = Network()
    x = torch.randn(2, 3)
    fastscore.log_likelihood(SDE, network, x, solver="euler", steps=2, mode=mode, convention=NOISE)
    assert network.seen == [[False, False]] * 2
    assert network.trained.requires_grad


def test_guidance_through_a_network_asks_for_none():
    network = Network()
    operator = fastscore.control.averaging(2, (1, 4, 4))
    hook = fastscore.control.LinearGuidance(
        network, operator, torch.zeros(1, 1, 2, 2), noise_std=0.1, data_std=1.0, convention=NOISE
    )
    sampler = fastscore.DDIMSampler(SDE, lambda x, times: x, steps=2, convention=NOISE)
    sampler.sample((1, 1, 4, 4), hooks=[hook])
    assert network.seen == [[False, False]] * 2
    assert network.trained.requires_grad

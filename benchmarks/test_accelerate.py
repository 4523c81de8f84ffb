"""How fast is the U-Net of diffusers, as it comes and after `fastscore.accelerate`, with and without gradients?

The network is DDPM for CIFAR-10: the layout of google/ddpm-cifar10-32, 35.7 million random weights, float32. As a whole
program on a CPU, and beside other runtimes: test_networks.py.
"""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore.testing import unets
from fastscore.testing.timing import Case

pytest.importorskip("diffusers", reason="diffusers is what is accelerated here")

CONTENDERS = ("eager", "fastscore")


@functools.cache
def _networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    stock = unets.ddpm_cifar10()
    fast = copy.deepcopy(stock)
    fastscore.accelerate(fast)
    return {"eager": stock, "fastscore": fast}


def _forward(model: nn.Module, x: Tensor, time: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model(x, time).sample]


def _forward_backward(model: nn.Module, x: Tensor, time: Tensor) -> list[Tensor]:
    """The output, and the gradient of the parameters for the sum of its squares."""
    out = model(x, time).sample
    return [out.detach(), *torch.autograd.grad(out.square().sum(), list(model.parameters()))]


def _case(run: Callable[..., list[Tensor]], batch: int, device: str) -> Case:
    networks = {name: network.to(device) for name, network in _networks().items()}
    x, time = torch.randn(batch, 3, 32, 32, device=device), torch.full((batch,), 500, device=device)

    def check() -> None:
        (want, *wanted), (got, *gradients) = (run(networks[name], x, time) for name in CONTENDERS)
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()
        size = max((g.abs().max() for g in wanted), default=0)
        assert all((a - b).abs().max() <= 1e-4 * size for a, b in zip(gradients, wanted, strict=True))

    return Case(
        "accelerate",
        f"UNet2DModel (DDPM, CIFAR-10) batch {batch}, {run.__name__.strip('_').replace('_', ' + ')}, {device}",
        {name: lambda network=network: run(network, x, time) for name, network in networks.items()},
        check,
        x,
        about="eager is diffusers as it comes",
        floor=False,
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("run", [_forward, _forward_backward])
def test_accelerate(report, run, batch, device, contender):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    report(_case(run, batch, device), contender)

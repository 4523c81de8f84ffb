"""Conv3x3: torch's module by the fused op, and where it is torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastscore import _library
from fastscore.nn import Conv3x3
from fastscore.nn.layers import conv

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def launches():
    return sum(n for name, n in _library.NATIVE.launches().items() if name.startswith("conv3x3_winograd"))


def make(channels=64, outputs=64, **options):
    torch.manual_seed(0)
    return Conv3x3(channels, outputs, **options), torch.randn(8, channels, 32, 32)


@native
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_convolution_by_the_kernel(bias):
    layer, x = make(bias=bias)
    theirs = nn.Conv2d(64, 64, 3, padding=1, bias=bias)
    theirs.load_state_dict(layer.state_dict())
    _library.NATIVE.reset_launches()
    with torch.no_grad():
        actual = layer(x)
    assert launches() == 1
    expected = theirs.double()(x.double())
    assert (actual - expected).norm() <= 2e-6 * expected.norm()


@native
def test_gradients_are_those_of_torchs_convolution():
    layer, x = make()
    x.requires_grad_()
    _library.NATIVE.reset_launches()
    actual = torch.autograd.grad(layer(x).square().sum(), [x, layer.weight, layer.bias])
    assert launches() == 2  # forward, and the gradient in x
    out = F.conv2d(x, layer.weight, layer.bias, padding=1)
    for ours, theirs in zip(
        actual, torch.autograd.grad(out.square().sum(), [x, layer.weight, layer.bias]), strict=True
    ):
        assert (ours - theirs).norm() <= 5e-6 * theirs.norm()


@native
def test_under_autocast_and_in_other_dtypes_it_is_torchs():
    layer, x = make()
    _library.NATIVE.reset_launches()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    with torch.no_grad():
        assert torch.equal(layer.double()(x.double()), F.conv2d(x.double(), layer.weight, layer.bias, padding=1))
    assert launches() == 0


def test_layers_of_networks_are_fused_where_they_can_be():
    assert type(conv(4, 4)) is Conv3x3
    for options in ({"size": 1}, {"stride": 2}, {"padding": 0}):
        assert type(conv(4, 4, **options)) is nn.Conv2d

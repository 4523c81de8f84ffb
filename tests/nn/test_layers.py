"""Layers as DDPM initializes them."""

import pytest
import torch
from torch import nn

from fastscore.nn.layers import NIN, conv, dense, norm


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_convolutions_start_with_the_variance_of_their_fans(scale):
    torch.manual_seed(0)
    layer = conv(32, 96, scale=scale)
    # 27,648 uniform draws: their mean square errs by 0.9 / sqrt(27648) = 0.5%; five of those
    assert layer.weight.square().mean().item() == pytest.approx(scale / (9 * 64), rel=0.027)
    assert not layer.bias.any()
    assert layer(torch.ones(1, 32, 5, 7)).shape == (1, 96, 5, 7)


def test_scale_zero_is_almost_silent():
    layer = conv(8, 8, scale=0.0)
    assert 0 < layer.weight.abs().max() < 1e-5


def test_dense_layers_start_with_the_variance_of_their_fans():
    torch.manual_seed(0)
    layer = dense(100, 300)
    assert layer.weight.square().mean().item() == pytest.approx(1 / 200, rel=0.027)
    assert not layer.bias.any()


def test_nin_is_a_1x1_convolution():
    torch.manual_seed(0)
    layer = NIN(4, 6)
    nn.init.normal_(layer.b)
    x = torch.randn(2, 4, 3, 5)
    expected = nn.functional.conv2d(x, layer.W.T[:, :, None, None], layer.b)
    torch.testing.assert_close(layer(x.movedim(1, -1)).movedim(-1, 1), expected)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (32, 8), (128, 32), (512, 32)])
def test_groups_of_the_norm(channels, groups):
    layer = norm(channels, silu=False)
    assert (layer.num_groups, layer.num_channels, layer.eps) == (groups, channels, 1e-6)


@pytest.mark.parametrize("channels", [3, 9, 144])
def test_channels_that_do_not_divide_are_refused(channels):
    with pytest.raises(ValueError, match=f"a layer of {channels} channels cannot be normalized"):
        norm(channels, silu=True)

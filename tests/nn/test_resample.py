"""Resampling by two against its definition: insert zeros, pad, filter, drop."""

import itertools

import pytest
import torch
from torch import nn

from fastscore.nn.resample import Downsample, Upsample, fir_taps

KERNELS = [(1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 2, 4, 7), (1, 4, 6, 4, 1)]


def upfirdn(image, taps, up, down, before, after):
    """Element by element on one channel, float64, from the definition in Karras et al. 2019 (StyleGAN, App. B)."""
    height, width, size = *image.shape, len(taps)
    wide = torch.zeros(height * up + before + after, width * up + before + after, dtype=torch.float64)
    for i, j in itertools.product(range(height), range(width)):
        wide[before + i * up, before + j * up] = image[i, j]
    full = torch.zeros(len(wide) - size + 1, wide.shape[1] - size + 1, dtype=torch.float64)
    for i, j in itertools.product(range(full.shape[0]), range(full.shape[1])):
        full[i, j] = sum(
            wide[i + a, j + b] * taps[size - 1 - a, size - 1 - b]
            for a, b in itertools.product(range(size), range(size))
        )
    return full[::down, ::down]


def literal(x, taps, up, down, before, after, gain=1):
    images = [upfirdn(image, gain * taps, up, down, before, after) for image in x.flatten(0, 1)]
    return torch.stack(images).unflatten(0, x.shape[:2])


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fir_is_the_definition(kernel, memory_format, x):
    taps, length = fir_taps(kernel).double(), len(kernel)
    y = x.contiguous(memory_format=memory_format)
    extra = length - 2
    down = literal(x, taps, 1, 2, (extra + 1) // 2, extra // 2)
    up = literal(x, taps, 2, 1, (extra + 1) // 2 + 1, extra // 2, gain=4)
    for layer, expected in ((Downsample, down), (Upsample, up)):
        actual = layer(fir=True, fir_kernel=kernel).double()(y)
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
        assert actual.is_contiguous(memory_format=memory_format)
    assert down.shape == (2, 3, 3, 2)
    assert up.shape == (2, 3, 12, 8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_strided_convolution_sees_the_filtered_image(kernel, x):
    layer = Downsample(3, 5, with_conv=True, fir=True, fir_kernel=kernel).double()
    extra = len(kernel)
    filtered = literal(x, fir_taps(kernel).double(), 1, 1, (extra + 1) // 2, extra // 2)
    expected = nn.functional.conv2d(filtered, layer.Conv2d_0.weight, layer.Conv2d_0.bias, stride=2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert expected.shape == (2, 5, 3, 2)


def test_plain_resampling():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(Downsample()(x), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    torch.testing.assert_close(Upsample()(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_plain_strided_convolution_pads_right_and_below():
    layer = Downsample(1, 1, with_conv=True)
    with torch.no_grad():
        layer.Conv_0.weight.zero_()
        layer.Conv_0.weight[0, 0, 0, 0] = 1  # reads the upper left pixel of its 3x3 window
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    torch.testing.assert_close(layer(x), x[:, :, ::2, ::2])


def test_upsampling_keeps_a_constant_inside():
    up = Upsample(fir=True)(torch.ones(1, 1, 6, 6))
    torch.testing.assert_close(up[..., 1:-1, 1:-1], torch.ones(1, 1, 10, 10))


def test_the_filter_is_no_part_of_the_state():
    assert list(Upsample(3, fir=True).state_dict()) == []
    assert list(Upsample(3, with_conv=True, fir=True).state_dict()) == ["Conv2d_0.weight", "Conv2d_0.bias"]
    assert list(Downsample(3, with_conv=True).state_dict()) == ["Conv_0.weight", "Conv_0.bias"]


def test_half_precision_keeps_its_dtype():
    layer = Upsample(fir=True)
    assert layer(torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", [(1,), (1,) * 9])
def test_filters_of_other_lengths_are_refused(kernel):
    with pytest.raises(ValueError, match=rf"fir_kernel must have 2 to 8 taps, got {len(kernel)}"):
        Upsample(fir=True, fir_kernel=kernel)

"""Time features against sines and cosines of the standard library."""

import math

import pytest
import torch

from fastscore.nn.time_embedding import GaussianFourierProjection, positional_embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positional_embedding(dtype):
    labels = torch.tensor([0.0, 0.25, 998.99], dtype=torch.float64)
    frequencies = [10000 ** (-k / 3) for k in range(4)]
    expected = torch.tensor(
        [[f(t * w) for f in (math.sin, math.cos) for w in frequencies] for t in labels.tolist()], dtype=torch.float64
    )
    out = positional_embedding(labels, 8, dtype)
    assert out.dtype == dtype
    # phases up to 1e3 in float64 err by 1e3 * 2^-53; the result is rounded once
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 6.0e-8)


def test_positional_embedding_of_adm():
    labels = torch.tensor([0.0, 7.0, 999.0], dtype=torch.float64)
    frequencies = [10000 ** (-k / 4) for k in range(4)]
    expected = torch.tensor(
        [[f(t * w) for f in (math.cos, math.sin) for w in frequencies] for t in labels.tolist()], dtype=torch.float64
    )
    out = positional_embedding(labels, 8, torch.float64, freq_shift=0, flip_sin_to_cos=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_positional_embedding_takes_integers_and_odd_widths():
    out = positional_embedding(torch.tensor([3, 4]), 7)
    assert out.shape == (2, 7)
    assert (out[:, 6] == 0).all()
    torch.testing.assert_close(out[:, :6], positional_embedding(torch.tensor([3.0, 4.0]), 6))


def test_fourier_projection():
    layer = GaussianFourierProjection(5, scale=16.0)
    v = torch.tensor([-4.6, 3.9])
    expected = [[f(2 * math.pi * w * x) for f in (math.sin, math.cos) for w in layer.W.tolist()] for x in v.tolist()]
    torch.testing.assert_close(layer(v).double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6.0e-8)
    assert not layer.W.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_frequencies_alone(dtype):
    layer = GaussianFourierProjection(5)
    before = layer.W.clone()
    assert torch.equal(layer.to(dtype).W, before)
    assert torch.equal(layer.double().W, before.double())


def test_fourier_frequencies_have_the_wanted_width():
    torch.manual_seed(0)
    # the standard deviation of n normals errs by 1 / sqrt(2 n) = 0.7%: five of those
    assert GaussianFourierProjection(10_000, scale=16.0).W.std().item() == pytest.approx(16.0, rel=0.035)

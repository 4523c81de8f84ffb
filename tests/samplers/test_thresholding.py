"""Dynamic thresholding: the bound, per sample, and the hook in a sampler."""

import pytest
import torch

from fastscore import VPSDE, EulerMaruyamaSampler
from fastscore.samplers import DynamicThresholding

X0 = 3 * torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def thresholded(x0, ratio, max_val):
    """Section 2.3, one sample after the other."""
    rows = []
    for row in x0:
        s = max(float(torch.quantile(row.abs().flatten(), ratio)), max_val)
        rows.append(row.clamp(-s, s) / s)
    return torch.stack(rows)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("max_val", [1.0, 2.5])
@pytest.mark.parametrize("size", [1, 2, 107, 108])
def test_is_the_published_formula(ratio, max_val, size):
    x0 = X0.flatten(1)[:, :size].double()
    result = DynamicThresholding(ratio, max_val).on_denoised(x0, x0, None)
    torch.testing.assert_close(result, thresholded(x0, ratio, max_val), rtol=1e-12, atol=1e-12)


def test_an_image_in_range_keeps_its_values_and_the_input_is_not_written_to():
    x0 = X0.tanh()
    before = x0.clone()
    assert torch.equal(DynamicThresholding().on_denoised(x0, x0, None), before)
    assert torch.equal(x0, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    x0 = X0.to(dtype)
    result = DynamicThresholding(0.9).on_denoised(x0, x0, None)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), thresholded(x0.float(), 0.9, 1.0), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(4,), (0, 3, 8, 8), (2, 0)])
def test_any_shape(shape):
    x0 = torch.full(shape, 3.0)
    assert DynamicThresholding().on_denoised(x0, x0, None).shape == shape


@pytest.mark.no_poison  # much memory
def test_large_batches():
    """torch.quantile refuses more than 2^24 elements."""
    x0 = torch.linspace(-4, 4, 2**23 + 1).expand(2, -1)
    result = DynamicThresholding(0.99).on_denoised(x0, x0, None)
    torch.testing.assert_close(result, (x0 / 3.96).clamp(-1, 1))


def test_a_sample_does_not_depend_on_its_batchmates():
    sampler = EulerMaruyamaSampler(VPSDE(), lambda x, t: 0.3 * x, steps=20)
    hooks = [DynamicThresholding(0.9)]
    whole = sampler.sample((5, 3, 6, 6), seed=3, hooks=hooks)
    assert torch.equal(sampler.sample((2, 3, 6, 6), seed=3, hooks=hooks), whole[:2])
    assert not torch.equal(sampler.sample((5, 3, 6, 6), seed=3), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.0}, r"ratio must be a finite number above 0 and at most 1, got 0.0"),
        ({"ratio": 1.5}, r"ratio must be a finite number above 0 and at most 1, got 1.5"),
        ({"max_val": 0.0}, r"max_val must be a finite number above 0, got 0.0"),
        ({"max_val": float("nan")}, r"max_val must be a finite number above 0, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicThresholding(**arguments)

"""The discretized normal decoder against exact arithmetic."""

import mpmath
import pytest
import torch

from fastscore.likelihood.decoder import discretized_log_prob, log_interval

INTERVALS = [
    (-0.3, 0.5), (0.2, 0.21), (-8.0, -7.999), (7.999, 8.0), (30.0, 31.0), (-200.0, -199.0), (199.0, 200.0),
    (-1e-6, 1e-6), (3.0, 3.0 + 1e-7), (-torch.inf, -40.0), (40.0, torch.inf), (-torch.inf, 2.0),
    (-torch.inf, torch.inf),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), INTERVALS)
def test_the_probability_of_an_interval(a, b):
    """In both tails, where a difference of distribution functions is 0 or cancels."""
    with mpmath.workdps(40):
        left, right = (-b, -a) if a + b > 0 else (a, b)  # the same by symmetry
        exact = float(mpmath.log(mpmath.ncdf(right) - mpmath.ncdf(left)))
    ours = log_interval(*torch.tensor([[a], [b]], dtype=torch.float64))
    # an interval of length l has lost 1e-16 / l
    assert float(ours) == pytest.approx(exact, rel=1e-12, abs=1e-15 / min(b - a, 1.0))


@pytest.mark.parametrize("std", [1e-3, 0.1, 30.0])
@pytest.mark.parametrize("mean", [-1.7, -1.0, 0.003, 0.9])
@pytest.mark.parametrize(("bits", "low", "high"), [(1, -1.0, 1.0), (5, 0.0, 1.0), (8, -1.0, 1.0), (12, -2.0, 3.0)])
def test_the_levels_have_probability_one_together(bits, low, high, mean, std):
    levels = torch.arange(2**bits)
    center = torch.full((2**bits,), mean, dtype=torch.float64)
    log_prob = discretized_log_prob(levels, center, torch.tensor(std, dtype=torch.float64).log(), low, high, bits)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_a_narrow_level_has_its_density_times_its_width():
    levels, std = torch.tensor([100, 128, 30000]), 0.2
    width = 2 / (2**16 - 1)
    x = -1 + width * levels.double()
    mean = torch.full_like(x, -0.98)
    ours = discretized_log_prob(levels, mean, torch.full_like(x, std).log(), -1.0, 1.0, 16)
    density = torch.distributions.Normal(mean, std).log_prob(x)
    torch.testing.assert_close(ours, density + torch.tensor(width, dtype=torch.float64).log(), rtol=0, atol=1e-7)

"""The kernel distance: against the formula written out, its bias, its standard error, and its refusals."""

import itertools

import pytest
import torch

from fastscore.evaluation import kernel_distance, kid


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(x, y):
    """Binkowski et al. 2018, eq. 4, pair by pair."""

    def k(a, b):
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(k(a, b) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    within_y = sum(k(a, b) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def direct_error(x, y):
    """The delete-one jackknife, leaving out one row after the other."""
    variance = 0.0
    for without in (
        [direct(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(len(x))],
        [direct(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(len(y))],
    ):
        values = torch.tensor(without, dtype=torch.float64)
        variance += (len(values) - 1) * float(values.var(correction=0))
    return variance**0.5


@pytest.mark.parametrize("rows", [3, 1024])
def test_is_the_formula(rows, monkeypatch):
    monkeypatch.setattr(kid, "ROWS", rows)
    x, y = normals(7, 4), normals(10, 4, seed=1) + 0.5
    assert kernel_distance(x, y) == pytest.approx((direct(x, y), direct_error(x, y)), rel=1e-12)


def test_same_distribution_is_zero_within_its_error_and_a_shift_is_not():
    """Over 60 pairs of sets: unbiased, an error of the right size, and 0.2 of shift seen."""
    pairs = [(normals(100, 8, seed=2 * i), normals(300, 8, seed=2 * i + 1)) for i in range(60)]
    same = torch.tensor([kernel_distance(x, y) for x, y in pairs])
    assert abs(same[:, 0].mean()) < 3 * same[:, 0].std() / 60**0.5
    assert bool((same[:, 0] < 0).any())  # an estimate that is never negative is biased
    shifted = torch.tensor([kernel_distance(x + 0.2, y) for x, y in pairs])
    a, d = 8 * 0.2**2, 8  # E k(x, x') + E k(y, y') - 2 E k(x, y) from the first three moments of x . x', y . y', x . y
    exact = (a**3 + 6 * a**2 + 3 * a * d + 6 * a) / d**3 + 3 * a**2 / d**2 + 3 * a / d
    assert abs(shifted[:, 0].mean() - exact) < 3 * shifted[:, 0].std() / 60**0.5
    assert shifted[:, 1].mean() == pytest.approx(float(shifted[:, 0].std()), rel=0.25)  # 60 sets know it to 9%


def test_order_and_dtype_do_not_matter():
    x, y = normals(20, 4).float(), normals(30, 4, seed=1).float()
    value, error = kernel_distance(x, y)
    assert kernel_distance(x.flip(0), y) == pytest.approx((value, error), rel=1e-12)
    assert kernel_distance(y, x) == pytest.approx((value, error), rel=1e-12)
    assert kernel_distance(x.double(), y) == (value, error)


@pytest.mark.parametrize(
    ("samples", "reference", "error", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(3, 4), ValueError, r"samples must be features .* N >= 3, got \(2, 4\)"),
        (torch.zeros(3, 4), torch.zeros(3, 4, 1), ValueError, r"reference must be features .* got \(3, 4, 1\)"),
        (
            torch.zeros(3, 4),
            torch.zeros(3, 5),
            ValueError,
            ".* as many features and one device, got 4 on cpu and 5 on",
        ),
        (torch.zeros(3, 4).long(), torch.zeros(3, 4), TypeError, "samples must be a floating-point tensor, got torch"),
        (torch.zeros(3, 4), [[0.0]], TypeError, "reference must be a floating-point tensor, got list"),
    ],
)
def test_refusals(samples, reference, error, message):
    with pytest.raises(error, match=f"kernel_distance: {message}"):
        kernel_distance(samples, reference)

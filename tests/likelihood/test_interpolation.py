"""Spherical interpolation of latents."""

import math

import pytest
import torch

from fastscore import slerp


def ends(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(math.prod(shape))
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype).unbind(0)


def angle(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return torch.acos((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))


def test_points_divide_the_angle_evenly():
    a, b = ends(4, 3, 5)
    path = slerp(a, b, 5)
    assert path.shape == (5, 4, 3, 5)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[4], b)
    a, b = (end / end.flatten(1).norm(dim=1)[:, None, None] for end in (a, b))
    for k, point in enumerate(slerp(a, b, 5)):
        torch.testing.assert_close(point.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(angle(a, point), k / 4 * angle(a, b), rtol=0, atol=1e-7)


def test_draws_stay_draws():
    """The middle of two independent latents has their norm; the middle of the straight line is shorter by 1/sqrt(2)."""
    a, b = ends(64, 3, 32, 32, dtype=torch.float32)
    middle = slerp(a, b, torch.tensor([0.5]))[0]
    assert middle.dtype == torch.float32
    assert float(middle.std()) == pytest.approx(1, abs=0.01)
    assert float(((a + b) / 2).std()) == pytest.approx(0.5**0.5, abs=0.01)


def test_weights_and_rows():
    a, b = ends(3, 7)
    w = torch.tensor([0.3, 0.9, 0.0])
    path = slerp(a, b, w)
    torch.testing.assert_close(slerp(a[1:2], b[1:2], w), path[:, 1:2], rtol=0, atol=1e-15)
    torch.testing.assert_close(slerp(b, a, 1 - w), path, rtol=0, atol=1e-7)  # weights in float32
    # one formula that is easy to write down: two orthogonal unit vectors
    x, y = torch.eye(2, dtype=torch.float64)[:, None]
    expected = torch.stack([torch.cos(w.double() * math.pi / 2), torch.sin(w.double() * math.pi / 2)], 1)
    torch.testing.assert_close(slerp(x, y, w)[:, 0], expected)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-5])
def test_ends_that_nearly_agree(gap):
    a, direction = ends(2, 50)
    b = a + gap * direction
    torch.testing.assert_close(slerp(a, b, 3)[1], a + 0.5 * gap * direction, rtol=0, atol=1e-15 + gap * 1e-4)


@pytest.mark.parametrize(
    ("a", "b", "points", "error", "words"),
    [
        (torch.ones(2, 3), -torch.ones(2, 3), 3, ValueError, "opposite to each other, .* got sample 0"),
        (torch.zeros(2, 3), torch.ones(2, 3), 3, ValueError, "different from 0 in every sample"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), 3, ValueError, "finite"),
        (torch.ones(2, 3), torch.ones(3, 3), 3, ValueError, r"b must have the shape of a, \(2, 3\)"),
        (torch.ones(2, 3), torch.ones(2, 3).double(), 3, TypeError, "b must have the dtype of a"),
        (torch.ones(2, 3).long(), torch.ones(2, 3), 3, TypeError, "a must be float32"),
        (torch.ones(2, 3), torch.ones(2, 3), 1, ValueError, "points must be at least 2, got 1"),
        (torch.ones(2, 3), torch.ones(2, 3), 0.5, TypeError, "points must be an integer, got 0.5"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.arange(3), ValueError, "points must be a number, or floating-point"),
    ],
)
def test_bad_arguments_are_named(a, b, points, error, words):
    with pytest.raises(error, match=f"slerp: .*{words}"):
        slerp(a, b, points)

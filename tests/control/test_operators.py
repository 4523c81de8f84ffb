"""Linear operators against their matrices: adjoints, inverses by singular values and by conjugate gradients."""

import pytest
import torch

from fastscore.control import LinearOperator, averaging, grayscale, masking, matrix, random_projection
from fastscore.testing.inputs import make_input

SHAPE = (2, 4, 4)
MASK = make_input(SHAPE, seed=1) > 0
WIDE = make_input((5, 32), dtype=torch.float64, seed=2)
TALL = make_input((40, 32), dtype=torch.float64, seed=3)
OPERATORS = {
    "averaging": averaging(2, SHAPE),
    "gray": grayscale(SHAPE),
    "weighted": grayscale(SHAPE, [0.3, -0.6]),
    "masking": masking(MASK),
    "wide": matrix(WIDE, SHAPE),
    "tall": matrix(TALL, SHAPE),
    "deficient": matrix(torch.cat([WIDE, WIDE @ TALL[:32]])[[0, 1, 2, 0, 5]], SHAPE),
    "projection": random_projection(7, SHAPE, seed=4, dtype=torch.float64),
}


def matrix_of(operator):
    """Column k is the measurement of pixel k."""
    return operator.forward(torch.eye(32, dtype=torch.float64).reshape(32, *SHAPE)).flatten(1).T


def without_svd(operator, iterations):
    return LinearOperator(operator.forward, operator.adjoint, SHAPE, iterations=iterations, dtype=torch.float64)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_inverse_is_that_of_the_matrix(name):
    operator = OPERATORS[name]
    a = matrix_of(operator)
    y = make_input((3, *operator.measured), dtype=torch.float64, seed=5)
    shift = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64).reshape(3, *[1] * len(operator.measured))
    gram = a @ a.T
    for k, row in enumerate(operator.solve(y, shift).flatten(1)):
        exact = torch.linalg.solve(gram + float(shift[k]) * torch.eye(len(gram), dtype=torch.float64), y[k].flatten())
        torch.testing.assert_close(row, exact, rtol=1e-9, atol=1e-9)
    back = operator.pseudo_inverse(y).flatten(1)
    torch.testing.assert_close(back, y.flatten(1) @ torch.linalg.pinv(a).T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(operator.adjoint(y).flatten(1), y.flatten(1) @ a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_conjugate_gradients_give_the_same(name):
    """With as many iterations as there are different eigenvalues, and a measurement that A can make."""
    operator = OPERATORS[name]
    plain = without_svd(operator, 60 if name == "tall" else 5)
    y = operator.forward(make_input((3, *SHAPE), dtype=torch.float64, seed=6))
    for shift in (0.0, 0.5):
        expected = operator.adjoint(operator.solve(y, shift))
        torch.testing.assert_close(plain.adjoint(plain.solve(y, shift)), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(operator.forward(plain.pseudo_inverse(y)), y, rtol=1e-7, atol=1e-7)


def test_averaging():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert averaging(2, (1, 4, 4)).forward(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert averaging(2, (1, 4, 4)).measured == (1, 2, 2)


def test_grayscale():
    x = torch.tensor([[1.0, 2.0, 4.0]]).reshape(1, 3, 1, 1)
    assert float(grayscale((3, 1, 1)).forward(x)) == pytest.approx(7 / 3)
    assert float(grayscale((3, 1, 1), [0.5, 0.25, 0.125]).forward(x)) == 1.5
    assert grayscale((3, 5, 6)).measured == (1, 5, 6)


def test_masking():
    x = make_input((2, *SHAPE))
    assert torch.equal(masking(MASK).forward(x), torch.where(MASK, x, 0))


def test_random_projections_are_orthonormal_and_those_of_their_seed():
    a = matrix_of(OPERATORS["projection"])
    torch.testing.assert_close(a @ a.T, torch.eye(7, dtype=torch.float64))
    again, other = (matrix_of(random_projection(7, SHAPE, seed, dtype=torch.float64)) for seed in (4, 5))
    assert torch.equal(again, a)
    assert float((a @ other.T).abs().max()) < 0.95
    assert random_projection(7, SHAPE).forward(torch.ones(1, *SHAPE)).dtype == torch.float32


def test_the_dtype_is_that_of_the_image():
    for operator in OPERATORS.values():
        for dtype in (torch.float32, torch.float64):
            y = operator.forward(torch.ones(1, *SHAPE, dtype=dtype))
            assert y.dtype == operator.pseudo_inverse(y).dtype == dtype


def same(x):
    return x


def doubled(x):
    return 2 * x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinearOperator(None, abs, SHAPE), TypeError, "forward must be callable, got NoneType"),
        (lambda: LinearOperator(abs, 3, SHAPE), TypeError, "adjoint must be callable, got int"),
        (lambda: LinearOperator(doubled, same, SHAPE), ValueError, "adjoint must be that of forward, with"),
        (lambda: LinearOperator(lambda x: x + 1, same, SHAPE), ValueError, "adjoint must be that of forward, with"),
        (lambda: LinearOperator(abs, same, SHAPE), ValueError, "adjoint must be that of forward, with"),
        (
            lambda: LinearOperator(lambda x: x[:1], abs, SHAPE),
            ValueError,
            "forward must return a tensor with a row per",
        ),
        (lambda: LinearOperator(same, lambda y: y[0], SHAPE), ValueError, r"adjoint must return images, \(2, 2, 4"),
        (lambda: LinearOperator(same, same, SHAPE, iterations=0), ValueError, "iterations must be at least 1, got 0"),
        (
            lambda: LinearOperator(same, same, SHAPE, iterations=3, singular_values=1.0),
            ValueError,
            "iterations must be None beside singular_values, got 3",
        ),
        (
            lambda: LinearOperator(same, same, SHAPE, left=(same, same)),
            ValueError,
            "left must come with singular_values",
        ),
        (
            lambda: LinearOperator(same, same, SHAPE, singular_values=1.0, left=same),
            TypeError,
            "left must be two callables, .*, got function",
        ),
        (
            lambda: LinearOperator(same, same, SHAPE, singular_values=1.0, left=(doubled, same)),
            ValueError,
            "left must be .* with U U.T = 1",
        ),
        (
            lambda: LinearOperator(same, same, SHAPE, singular_values=1.0, left=(same, lambda y: y[:1])),
            ValueError,
            r"left must turn measurements, \(2, 2, 4, 4\), into such, got \(1, 2, 4, 4\)",
        ),
        (
            lambda: LinearOperator(doubled, doubled, SHAPE, singular_values=1.0),
            ValueError,
            "singular_values must be those of forward, with A A.T = U S.2 U.T, got a difference",
        ),
        (
            lambda: LinearOperator(same, same, SHAPE, singular_values=torch.ones(2)),
            ValueError,
            r"singular_values must have the shape of a measurement, \(2, 4, 4\), or \(\), got \(2,\)",
        ),
        (lambda: LinearOperator(same, same, SHAPE, singular_values=-1), ValueError, "finite and at least 0, got -1"),
        (lambda: LinearOperator(same, same, SHAPE, singular_values="1"), TypeError, "a tensor or a number, got str"),
        (
            lambda: averaging(3, (1, 4, 4)),
            ValueError,
            r"shape must be \(C, H, W\) with H and W divisible by 3, got \(1, 4, 4",
        ),
        (lambda: averaging(0, SHAPE), ValueError, "factor must be at least 1"),
        (lambda: grayscale(SHAPE, [1.0]), ValueError, r"weights must be 2 finite numbers, not all 0, got \[1.0\]"),
        (lambda: grayscale(SHAPE, [0.0, 0.0]), ValueError, "weights must be 2 finite numbers, not all 0"),
        (lambda: grayscale(()), ValueError, r"shape must be \(C, ...\), with channels, got \(\)"),
        (lambda: grayscale(SHAPE, 1.0), TypeError, "weights must be a sequence of 2 numbers, got 1.0"),
        (
            lambda: random_projection(2, 3),
            TypeError,
            "random_projection: shape must be a sequence of integers, .* got 3",
        ),
        (lambda: matrix(WIDE, (2, 4, 4.0)), TypeError, r"matrix: shape must be a sequence of .* got \(2, 4, 4.0\)"),
        (lambda: averaging(2, (1, 0, 4)), ValueError, r"averaging: shape must be positive, got \(1, 0, 4\)"),
        (
            lambda: LinearOperator(same, same, None),
            TypeError,
            "LinearOperator: shape must be a sequence of .* got None",
        ),
        (lambda: random_projection(2, SHAPE, "0"), TypeError, "random_projection: seed must be an integer, got '0'"),
        (lambda: masking(MASK.float()), TypeError, "mask must be a bool tensor, got torch.float32"),
        (lambda: masking([True]), TypeError, "mask must be a bool tensor, got list"),
        (lambda: matrix(WIDE.int(), SHAPE), TypeError, "rows must be a floating-point tensor, got torch.int32"),
        (lambda: matrix(WIDE.T, SHAPE), ValueError, r"rows must have shape \(M, 32\), .*, got \(32, 5\)"),
        (lambda: matrix(WIDE / 0, SHAPE), ValueError, "rows must be finite"),
        (lambda: random_projection(33, SHAPE), ValueError, "count must be at most .*, 32, got 33"),
        (lambda: random_projection(0, SHAPE), ValueError, "count must be at least 1, got 0"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()

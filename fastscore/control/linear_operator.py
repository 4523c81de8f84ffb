"""A linear map of images to measurements, its adjoint, which is checked, and how to go back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore._checks import wrong_type, wrong_value
from fastscore.samplers.base import check_count

__all__ = ["LinearOperator", "Map", "check_shape"]

Map = Callable[[Tensor], Tensor]


class LinearOperator:
    """A linear map A of images (n, ...) to measurements (n, ...), row by row, with its adjoint A^T.

    Where the singular value decomposition ``A = U S V^T`` is known, what goes back is in closed form; V is not needed,
    since ``A A^T = U S^2 U^T`` and the pseudo-inverse is ``A^T U S^-2 U^T``. Elsewhere it is by conjugate gradients.

    Args:
        forward: A, called with (n, *shape).
        adjoint: A^T, called with what A returns.
        shape: of one image.
        singular_values: S, one for each number that is measured, a tensor of shape `measured`, or one number for all;
            >= 0, and 0 where nothing is measured. None: not known.
        left: U and U^T, of measurements (n, *measured) to the same; None: the identity.
        iterations: of conjugate gradients, >= 1, in place of `singular_values`; by default 10. Exact with as many as
            A A^T has different eigenvalues.
        dtype, device: of the images that the maps are tried on.

    Attributes:
        measured: shape of the measurement of one image.

    Raises:
        TypeError, ValueError: forward or adjoint is not callable, does not map row by row, or the adjoint is not that
            of forward: ``<A x, y> = <x, A^T y>`` fails for random x and y, also because forward is not linear; U and S
            are not those of A: ``A A^T y = U S^2 U^T y`` or ``U U^T y = y`` fails.
    """

    def __init__(
        self,
        forward: Map,
        adjoint: Map,
        shape: Sequence[int],
        *,
        singular_values: Tensor | float | None = None,
        left: tuple[Map, Map] | None = None,
        iterations: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, function in (("forward", forward), ("adjoint", adjoint)):
            if not callable(function):
                wrong_type("LinearOperator", name, "be callable", type(function).__name__)
        self.left = (_same, _same) if left is None else _pair(left)
        if singular_values is None and left is not None:
            wrong_value("LinearOperator", "left", "come with singular_values", "it alone")
        if singular_values is not None and iterations is not None:
            wrong_value("LinearOperator", "iterations", "be None beside singular_values", iterations)
        self.iterations = 10 if iterations is None else iterations
        check_count("LinearOperator", "iterations", self.iterations, 1)
        self.forward, self.adjoint, self.shape = forward, adjoint, check_shape("LinearOperator", shape)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, *self.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        image = forward(x)
        if not isinstance(image, Tensor) or len(image) != len(x):
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            wrong_value("LinearOperator", "forward", "return a tensor with a row per image, (2, ...)", got)
        self.measured = tuple(image.shape[1:])
        y = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(device, dtype)
        back = adjoint(y)
        if not isinstance(back, Tensor) or back.shape != x.shape:
            got = tuple(back.shape) if isinstance(back, Tensor) else type(back).__name__
            wrong_value("LinearOperator", "adjoint", f"return images, {tuple(x.shape)}", got)
        first, second = _dot(image, y), _dot(x, back)
        rounding = 100 * torch.finfo(dtype).eps * (_dot(image, image) * _dot(y, y)).sqrt()
        if not bool(((first - second).abs() <= rounding).all()):
            accepted = "be that of forward, with <A x, y> = <x, A^T y>"
            wrong_value("LinearOperator", "adjoint", accepted, f"{first.tolist()} and {second.tolist()}")
        self.singular_values = None if singular_values is None else _checked(singular_values, self.measured)
        if self.singular_values is not None:
            self._try(self.singular_values, y)

    def solve(self, right: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """``(A A^T + shift)^-1 right`` of every row of right (n, *measured); shift >= 0, a number or (n, 1, ...).

        Without a shift it is the solution of least norm, for a right hand side that A can make.
        """
        if self.singular_values is None:
            return _conjugate_gradients(self, right, shift)
        turn, turn_back = self.left
        total = self.singular_values.square() + shift
        inverse = torch.where(total > 0, 1 / total, 0.0)
        return turn((inverse * turn_back(right)).to(right.dtype))

    def pseudo_inverse(self, measurement: Tensor) -> Tensor:
        """The image (n, *shape) of least norm that has the measurement (n, *measured)."""
        return self.adjoint(self.solve(measurement))

    def _try(self, values: Tensor, y: Tensor) -> None:
        """Raise unless U and S are those of A, for the measurements y."""
        turn, turn_back = self.left
        turned = turn_back(y)
        if turned.shape != y.shape:
            accepted = f"turn measurements, {tuple(y.shape)}, into such"
            wrong_value("LinearOperator", "left", accepted, tuple(turned.shape))
        eps = 100 * torch.finfo(y.dtype).eps
        size = _dot(y, y).sqrt()
        if not bool((_norm(turn(turned) - y) <= eps * size).all()):
            wrong_value("LinearOperator", "left", "be (U, U^T) with U U^T = 1", "other maps")
        gap = _norm(self.forward(self.adjoint(y)) - turn((values.square() * turned).to(y.dtype)))
        if not bool((gap <= eps * values.square().max() * size).all()):
            accepted = "be those of forward, with A A^T = U S^2 U^T"
            wrong_value("LinearOperator", "singular_values", accepted, f"a difference of {gap.tolist()}")


def check_shape(owner: str, shape: object) -> tuple[int, ...]:
    """The shape of an image, integers >= 1; raises TypeError or ValueError."""
    if not isinstance(shape, Sequence) or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        wrong_type(owner, "shape", "be a sequence of integers, that of one image", repr(shape))
    if any(n < 1 for n in shape):
        wrong_value(owner, "shape", "be positive", tuple(shape))
    return tuple(shape)


def _same(y: Tensor) -> Tensor:
    return y


def _pair(left: object) -> tuple[Map, Map]:
    if not isinstance(left, tuple) or len(left) != 2 or not all(callable(part) for part in left):
        wrong_type("LinearOperator", "left", "be two callables, (U, U^T), or None", type(left).__name__)
    return left


def _checked(values: object, measured: tuple[int, ...]) -> Tensor:
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = torch.tensor(float(values), dtype=torch.float64)
    if not isinstance(values, Tensor):
        wrong_type("LinearOperator", "singular_values", "be a tensor or a number", type(values).__name__)
    if values.shape not in ((), measured):
        accepted = f"have the shape of a measurement, {measured}, or ()"
        wrong_value("LinearOperator", "singular_values", accepted, tuple(values.shape))
    values = values.to(torch.float64)
    if not bool(((values >= 0) & torch.isfinite(values)).all()):
        wrong_value("LinearOperator", "singular_values", "be finite and at least 0", values.tolist())
    return values


@torch.no_grad()
def _conjugate_gradients(operator: LinearOperator, right: Tensor, shift: Tensor | float) -> Tensor:
    """``(A A^T + shift)^-1 right`` for every row, from 0 (Hestenes and Stiefel, 1952)."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b > 0, a / b, 0.0)  # 0 / 0 where a row is solved

    solution, residual, direction = torch.zeros_like(right), right, right
    square = dot(right, right)
    for _ in range(operator.iterations):
        image = operator.forward(operator.adjoint(direction)) + shift * direction
        step = ratio(square, dot(direction, image))
        solution, residual = solution + step * direction, residual - step * image
        before, square = square, dot(residual, residual)
        direction = residual + ratio(square, before) * direction
    return solution


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, float64 (n,)."""
    return (a.double() * b.double()).flatten(1).sum(1)

"""Linear operators: what was measured of an image, and the adjoint, which is checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastscore._checks import wrong_type, wrong_value
from fastscore.samplers.base import check_count

__all__ = ["LinearOperator", "averaging"]


class LinearOperator:
    """A linear map A of images (n, ...) to measurements (n, ...), row by row, and its adjoint A^T.

    Args:
        forward: A, called with (n, *shape).
        adjoint: A^T, called with what A returns.
        shape: of one image.
        dtype, device: of the images that the adjoint is tried on.

    Attributes:
        measured: shape of the measurement of one image.

    Raises:
        TypeError, ValueError: forward or adjoint is not callable, does not map row by row, or the adjoint is not that
            of forward: ``<A x, y> = <x, A^T y>`` fails for random x and y, also because forward is not linear.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, function in (("forward", forward), ("adjoint", adjoint)):
            if not callable(function):
                wrong_type("LinearOperator", name, "be callable", type(function).__name__)
        self.forward, self.adjoint, self.shape = forward, adjoint, tuple(shape)
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
        left, right = _dot(image, y), _dot(x, back)
        rounding = 100 * torch.finfo(dtype).eps * (_dot(image, image) * _dot(y, y)).sqrt()
        if not bool(((left - right).abs() <= rounding).all()):
            accepted = "be that of forward, with <A x, y> = <x, A^T y>"
            wrong_value("LinearOperator", "adjoint", accepted, f"{left.tolist()} and {right.tolist()}")


def averaging(factor: int, shape: Sequence[int]) -> LinearOperator:
    """Means of blocks of `factor` times `factor` pixels of an image (C, H, W): what super-resolution starts from.

    Raises:
        TypeError, ValueError: factor is not an integer >= 1 that divides H and W, or shape is not (C, H, W).
    """
    check_count("averaging", "factor", factor, 1)
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        wrong_value("averaging", "shape", f"be (C, H, W) with H and W divisible by {factor}", tuple(shape))

    def adjoint(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, -2).repeat_interleave(factor, -1) / factor**2

    return LinearOperator(lambda x: functional.avg_pool2d(x, factor), adjoint, shape)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, float64 (n,)."""
    return (a.double() * b.double()).flatten(1).sum(1)

"""Linear operators whose singular value decomposition is known: what images are commonly measured by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastscore._checks import wrong_type, wrong_value
from fastscore.control.linear_operator import LinearOperator, Map, check_shape
from fastscore.samplers.base import check_count

__all__ = ["averaging", "grayscale", "masking", "matrix", "random_projection"]


def averaging(factor: int, shape: Sequence[int]) -> LinearOperator:
    """Means of blocks of `factor` times `factor` pixels of an image (C, H, W): what super-resolution starts from.

    Raises:
        TypeError, ValueError: factor is not an integer >= 1 that divides H and W, or shape is not (C, H, W).
    """
    check_count("averaging", "factor", factor, 1)
    shape = check_shape("averaging", shape)
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        wrong_value("averaging", "shape", f"be (C, H, W) with H and W divisible by {factor}", tuple(shape))

    def adjoint(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, -2).repeat_interleave(factor, -1) / factor**2

    return LinearOperator(lambda x: functional.avg_pool2d(x, factor), adjoint, shape, singular_values=1 / factor)


def grayscale(shape: Sequence[int], weights: Sequence[float] | None = None) -> LinearOperator:
    """A weighted sum over the channels of an image (C, ...): the gray image (1, ...) that colorization starts from.

    Args:
        weights: of the channels, (C,), finite and not all 0; by default 1 / C each, the mean.

    Raises:
        TypeError, ValueError: weights are not of that kind, or shape has no channels.
    """
    shape = check_shape("grayscale", shape)
    if not shape:
        wrong_value("grayscale", "shape", "be (C, ...), with channels", shape)
    channels = shape[0]
    given = [1 / channels] * channels if weights is None else weights
    if not isinstance(given, Sequence) or not all(isinstance(weight, (int, float)) for weight in given):
        wrong_type("grayscale", "weights", f"be a sequence of {channels} numbers", repr(weights))
    size = math.hypot(*given)
    if len(given) != channels or not 0 < size < math.inf:
        wrong_value("grayscale", "weights", f"be {channels} finite numbers, not all 0", list(given))

    def forward(x: Tensor) -> Tensor:
        first, *others = (weight * channel for weight, channel in zip(given, x.split(1, 1), strict=True))
        return sum(others, start=first)

    def adjoint(y: Tensor) -> Tensor:
        return torch.cat([weight * y for weight in given], 1)

    return LinearOperator(forward, adjoint, shape, singular_values=size)


def masking(mask: Tensor) -> LinearOperator:
    """The pixels of an image where a mask is True, and 0 elsewhere; `Inpainting` keeps such pixels to the last bit.

    Args:
        mask: bool, of the shape of one image.

    Raises:
        TypeError: mask is not a bool tensor.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        wrong_type("masking", "mask", "be a bool tensor", getattr(mask, "dtype", type(mask).__name__))

    def keep(x: Tensor) -> Tensor:
        return x * mask

    return LinearOperator(keep, keep, mask.shape, singular_values=mask.double(), device=mask.device)


def matrix(rows: Tensor, shape: Sequence[int]) -> LinearOperator:
    """Products of the flattened image with the rows of a matrix, which is decomposed in float64.

    Args:
        rows: (M, D) with D the number of elements of an image, floating point; in its dtype, on its device, products
            are computed. Singular values below the rounding errors of the decomposition count as 0.
        shape: of one image.

    Raises:
        TypeError, ValueError: rows is not a finite floating-point matrix of M >= 1 rows and D columns.
    """
    size = math.prod(check_shape("matrix", shape))
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        wrong_type("matrix", "rows", "be a floating-point tensor", getattr(rows, "dtype", type(rows).__name__))
    if rows.ndim != 2 or rows.shape[1] != size or not len(rows):
        wrong_value("matrix", "rows", f"have shape (M, {size}), a column per element of an image", tuple(rows.shape))
    if not bool(torch.isfinite(rows).all()):
        wrong_value("matrix", "rows", "be finite", "NaN or infinity")
    u, values, _ = torch.linalg.svd(rows.double(), full_matrices=len(rows) > size)
    rounding = max(rows.shape) * torch.finfo(rows.dtype).eps * values.max()
    values = functional.pad(values * (values > rounding), (0, len(rows) - len(values)))
    u = u.to(rows.dtype)
    left = (lambda y: _product(u, y), lambda y: _product(u.T, y))
    return LinearOperator(
        *_by(rows, shape), shape, singular_values=values, left=left, dtype=rows.dtype, device=rows.device
    )


def random_projection(
    count: int,
    shape: Sequence[int],
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LinearOperator:
    """Products of the flattened image with `count` random orthonormal vectors: compressed sensing.

    The vectors span a subspace whose direction is uniformly distributed.

    Args:
        count: of products, at least 1 and at most the number of elements of an image.
        shape: of one image.
        seed: of the vectors, >= 0.
        dtype, device: of the vectors, and of the computation.

    Raises:
        TypeError, ValueError: count or seed is not an integer in its range.
    """
    check_count("random_projection", "count", count, 1)
    check_count("random_projection", "seed", seed, 0)
    size = math.prod(check_shape("random_projection", shape))
    if count > size:
        wrong_value("random_projection", "count", f"be at most the number of elements of an image, {size}", count)
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0].T
    rows = vectors.to(device, dtype).contiguous()
    return LinearOperator(*_by(rows, shape), shape, singular_values=1.0, dtype=dtype, device=device)


def _product(matrix: Tensor, y: Tensor) -> Tensor:
    """The matrix times every row of y, computed in the dtype of the matrix."""
    return (y.to(matrix.dtype) @ matrix.T).to(y.dtype)


def _by(rows: Tensor, shape: Sequence[int]) -> tuple[Map, Map]:
    """A and A^T of the matrix A."""
    return lambda x: _product(rows, x.flatten(1)), lambda y: _product(rows.T, y).reshape(-1, *shape)

"""The kernel distance KID (Binkowski et al. 2018, arXiv 1801.01401) over given features, with its standard error."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kernel_distance"]

ROWS = 1024  # of a kernel matrix at a time


def kernel_distance(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy under ``k(x, y) = (x . y / D + 1)^3``: the unbiased estimate, all pairs.

    The estimate can be negative. Its size depends on the scale of the features: compare under one feature extractor.
    The standard error is the delete-one jackknife's over both sets (Arvesen 1969): over new samples and a new
    reference. Where two sets of samples share a reference, their difference is known better than it says.

    Args:
        samples, reference: features, floating-point, (N, D) and (M, D) with N, M >= 3. N and M may differ.

    Returns:
        The estimate and its standard error, computed in float64.

    Raises:
        ValueError, TypeError: features of another shape or dtype, or on two devices.
    """
    for name, features in (("samples", samples), ("reference", reference)):
        if not isinstance(features, Tensor) or not features.is_floating_point():
            got = features.dtype if isinstance(features, Tensor) else type(features).__name__
            raise TypeError(f"kernel_distance: {name} must be a floating-point tensor, got {got}")
        if features.dim() != 2 or len(features) < 3:
            raise ValueError(
                f"kernel_distance: {name} must be features of shape (N, D), N >= 3, got {tuple(features.shape)}"
            )
    if samples.shape[1] != reference.shape[1] or samples.device != reference.device:
        raise ValueError(
            "kernel_distance: samples and reference must have as many features and one device, "
            f"got {samples.shape[1]} on {samples.device} and {reference.shape[1]} on {reference.device}"
        )
    x, y = samples.double(), reference.double()
    xx, yy = _row_sums(x, x) - _kernel(x, x), _row_sums(y, y) - _kernel(y, y)  # of the other rows
    xy, yx = _row_sums(x, y), _row_sums(y, x)
    n, m = len(x), len(y)
    within_x, within_y, between = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1)), xy.sum() / (n * m)
    # the estimate without sample i, for all i at once; what does not depend on i adds no variance
    without_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) - 2 * (xy.sum() - xy) / ((n - 1) * m)
    without_y = (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (yx.sum() - yx) / (n * (m - 1))
    variance = sum((len(w) - 1) * w.var(correction=0) for w in (without_x, without_y))
    return float(within_x + within_y - 2 * between), float(torch.as_tensor(variance).sqrt())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """k of corresponding rows, (N,)."""
    return ((x * y).sum(1) / x.shape[1] + 1) ** 3


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """The sum over y of k(x_i, y), (N,)."""
    return torch.cat([((rows @ y.T / x.shape[1] + 1) ** 3).sum(1) for rows in x.split(ROWS)])

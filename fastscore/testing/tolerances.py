"""Error budgets that come from data, so that no test needs a tolerance typed by hand.

A fused operator is allowed to err `factor` times as much, against a float64 oracle, as plain PyTorch errs in the
same dtype on the same input:

    |actual - oracle|_max  <=  factor * ( |plain - oracle|_max + u * |oracle|_max ),   u = eps(dtype) / 2

The second term is the rounding band: the best possible result still has to be rounded to the output dtype.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ErrorReport(NamedTuple):
    """What `assert_error_within_budget` measured: maximum absolute errors against the oracle, and where."""

    error: float
    reference_error: float
    band: float
    budget: float
    worst_index: tuple[int, ...]

    @property
    def used(self) -> float:
        """The share of the budget that was used (0 where both are 0)."""
        return self.error / self.budget if self.budget > 0 else float(self.error > 0)


def assert_error_within_budget(
    actual: Tensor, oracle64: Tensor, low_precision_ref: Tensor, name: str, factor: float = 2.0
) -> ErrorReport:
    """Assert that `actual` errs at most `factor` times as much as plain PyTorch does in the same dtype.

    Args:
        actual: the result under test, any floating dtype.
        oracle64: the same computation in float64, same shape.
        low_precision_ref: the same computation by plain PyTorch operators in the dtype of `actual`, same shape.
        name: what is compared; opens the message.
        factor: 2 for values, 3 for gradients.

    Returns:
        the measured errors, which are also printed, so that `pytest -rP` shows them for passing tests.

    Raises:
        AssertionError: another shape or dtype, a non-finite element, or an error over the budget.
        TypeError: the oracle is not float64.
    """
    if oracle64.dtype != torch.float64:
        raise TypeError(f"{name}: oracle64 must be float64, got {oracle64.dtype}")
    for label, other in (("oracle64", oracle64), ("low_precision_ref", low_precision_ref)):
        if actual.shape != other.shape:
            raise AssertionError(f"{name}: shape {tuple(actual.shape)}, {label} has {tuple(other.shape)}")
    if actual.dtype != low_precision_ref.dtype:
        raise AssertionError(f"{name}: dtype {actual.dtype}, low_precision_ref has {low_precision_ref.dtype}")
    actual, oracle64, low_precision_ref = (t.detach().cpu() for t in (actual, oracle64, low_precision_ref))
    for label, tensor in (("actual", actual), ("oracle64", oracle64), ("low_precision_ref", low_precision_ref)):
        bad = ~torch.isfinite(tensor)
        if bad.any():
            first = tuple(bad.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {int(bad.sum())} non-finite of {tensor.numel()} in {label}, first at {first}"
            )

    error, worst = max_error(actual, oracle64)
    reference_error, _ = max_error(low_precision_ref, oracle64)
    peak = float(oracle64.abs().max()) if oracle64.numel() else 0.0
    band = 0.5 * torch.finfo(actual.dtype).eps * peak
    report = ErrorReport(error, reference_error, band, factor * (reference_error + band), worst)
    line = (
        f"{name}: error {error:.3g} at {worst}, plain PyTorch {reference_error:.3g}, rounding band {band:.3g}, "
        f"budget {report.budget:.3g} = {factor:g} * (plain + band), used {report.used:.0%}"
    )
    print(line)
    if error > report.budget:
        got, want = float(actual[worst]), float(oracle64[worst])
        raise AssertionError(f"{line}; got {got!r}, want {want!r}")
    return report


def max_error(actual: Tensor, oracle64: Tensor) -> tuple[float, tuple[int, ...]]:
    """The largest absolute difference in float64 and its index; (0, ()) for empty tensors."""
    if actual.numel() == 0:
        return 0.0, ()
    difference = (actual.to(torch.float64) - oracle64.to(torch.float64)).abs()
    worst = torch.unravel_index(difference.argmax(), difference.shape)
    index = tuple(int(i) for i in worst)
    return float(difference[index]), index


_INTEGER = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """How many representable numbers lie between `a` and `b`, elementwise; int64, 0 where equal, +0 and -0 equal.

    Both must have the same shape and dtype (float64, float32, float16 or bfloat16) and hold no NaN. Distances
    beyond the range of int64 (float64 of opposite sign and enormous size) saturate.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"a and b must agree, got {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}")
    if a.dtype not in _INTEGER:
        raise TypeError(f"a and b must be floating point of 16, 32 or 64 bits, got {a.dtype}")
    if torch.isnan(a).any() or torch.isnan(b).any():
        raise ValueError("a or b holds NaN, which has no distance to anything")
    ranks = []
    for tensor in (a, b):
        integer = _INTEGER[a.dtype]
        bits = tensor.detach().contiguous().view(integer).to(torch.int64)
        # Sign and magnitude to one ordered line: the negative numbers count downwards from zero.
        ranks.append(torch.where(bits < 0, torch.iinfo(integer).min - bits, bits))
    rank_a, rank_b = ranks
    distance = (rank_a - rank_b).abs()
    overflow = ((rank_a < 0) != (rank_b < 0)) & (distance < rank_a.abs().maximum(rank_b.abs()))
    return distance.masked_fill(overflow | (distance < 0), torch.iinfo(torch.int64).max)

"""What tests of error_norm share: cases, and parity with the reference."""

from typing import Any

import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing.inputs import make_input
from fastscore.testing.tolerances import assert_error_within_budget

Case = tuple[list[Tensor], Tensor, Tensor, Tensor, dict[str, Any]]


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    terms: int = 3,
    rows: bool = False,
    kind: str = "sum",
    device: torch.device | str = "cpu",
) -> Case:
    """Arguments (terms, coefficients, u, v, keywords) of a call whose result is of order one."""
    stages = [make_input(shape, layout, dtype=dtype, device=device, seed=k) for k in range(terms)]
    u, v = (make_input(shape, layout, dtype=dtype, device=device, scale=0.5, mean=1.0, seed=seed) for seed in (50, 51))
    size = (len(u), terms) if rows else (terms,)
    coefficients = make_input(size, dtype=accumulation_dtype(dtype), device=device, seed=90)
    return stages, coefficients, u, v, {"atol": 0.5, "rtol": 0.4, "kind": kind}


def assert_parity(actual: Tensor, case: Case) -> None:
    """Assert that norms are within their error budget."""
    terms, coefficients, u, v, keywords = case
    plain = reference.error_norm(terms, coefficients, u, v, **keywords)
    if u.dtype == torch.float64:
        # The oracle rounds as much as the kernel: both make 2 K roundings of the sum and 4 of the scale and quotient,
        # relative to sum_k |c_k t_k|, and a few in a sum of squares, where rounding errors average out.
        size = reference.error_norm([t.abs() for t in terms], coefficients.abs(), u, v, **keywords)
        assert actual.dtype == torch.float64
        assert ((actual - plain).abs() <= 2 * (2 * len(terms) + 8) * 2.0**-53 * size).all()
        return
    wide = [t.double() for t in terms], coefficients.double(), u.double(), v.double()
    assert_error_within_budget(actual, reference.error_norm(*wide, **keywords), plain, "error_norm")

"""What tests of masked_replace share: cases, and parity with the reference."""

import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing.inputs import as_layout, make_input
from fastscore.testing.tolerances import assert_error_within_budget

Case = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    noise: str = "drawn",
    per_sample: bool = False,
    device: torch.device | str = "cpu",
) -> Case:
    """Arguments (x, known, mask, coefficients, keywords) of a call; known is NaN where the mask is False."""
    x, image, z = (make_input(shape, layout, dtype=dtype, device=device, seed=seed) for seed in (0, 1, 91))
    mask = make_input(tuple(x.shape), device=device, seed=2) > 0.3
    known = as_layout(torch.where(mask, image, torch.nan), layout)
    rows = make_input(
        (len(x), 2) if per_sample else (2,), dtype=accumulation_dtype(dtype), device=device, mean=2.0, seed=90
    )
    if noise == "drawn":
        rng, samples = torch.tensor([2**40 + 17, 5], device=device), torch.arange(len(x), device=device) * 3 + 2**33
        return x, known, as_layout(mask, layout), rows, {"rng": rng, "samples": samples}
    return x, known, as_layout(mask, layout), rows, {"noise": z} if noise == "given" else {}


def assert_parity(actual: Tensor, case: Case, factor: float = 2.0) -> None:
    """Assert that a state is what it was where nothing is known, and within its error budget elsewhere."""
    x, known, mask, rows, keywords = case
    plain = reference.masked_replace(x, known, mask, rows, **keywords)
    in64 = {name: value.double() if value.is_floating_point() else value for name, value in keywords.items()}
    oracle = reference.masked_replace(x.double(), known.double(), mask, rows.double(), **in64)
    assert torch.equal(actual[~mask], x[~mask])
    if x.dtype == torch.float64:  # the oracle rounds as much: two products, a sum, and 4 units of the normal
        size = reference.masked_replace(x, known.abs(), mask, rows.abs(), noise=_normals(x, keywords).abs())
        assert ((actual - plain).abs() <= 2 * 8 * 2.0**-53 * size)[mask].all()
        return
    assert_error_within_budget(actual, oracle, plain, "masked_replace", factor=factor)


def _normals(x: Tensor, keywords: dict[str, Tensor]) -> Tensor:
    ones = torch.ones_like(x, dtype=torch.bool)
    unit = torch.tensor([0.0, 1.0], dtype=accumulation_dtype(x.dtype), device=x.device)
    return reference.masked_replace(x, torch.zeros_like(x), ones, unit, **keywords)

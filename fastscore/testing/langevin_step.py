"""What tests of langevin_step share: cases, and parity with the reference."""

import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing.inputs import make_input
from fastscore.testing.tolerances import assert_error_within_budget

Case = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    noise: str = "drawn",
    rows: bool = False,
    device: torch.device | str = "cpu",
) -> Case:
    """Arguments (x, h, coefficients, keywords) of a call; the score is -1.3 h + 0.2 x, the step near 0.05."""
    x, h = (make_input(shape, layout, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    coefficients = torch.tensor([0.2, -1.3, 0.05], dtype=torch.float64)
    if rows:
        coefficients = coefficients * make_input((len(x), 3), dtype=torch.float64, scale=0.1, mean=1.0, seed=90)
    coefficients = coefficients.to(device, accumulation_dtype(dtype))
    if noise == "given":
        return x, h, coefficients, {"noise": make_input(shape, layout, dtype=dtype, device=device, seed=91)}
    rng = torch.tensor([2**40 + 17, 5], device=device)
    return x, h, coefficients, {"rng": rng, "samples": torch.arange(len(x), device=device) * 3 + 2**33}


def assert_parity(
    actual: Tensor, x: Tensor, h: Tensor, coefficients: Tensor, keywords: dict[str, Tensor], per_sample: bool
) -> None:
    """Assert that a step is within its error budget, with the strides of the reference."""
    plain = reference.langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
    assert actual.stride() == plain.stride()
    if x.dtype == torch.float64:
        # The oracle rounds as much as the kernel: 2 * (5 roundings of the sum, 4 units of a normal, and less than 7 of
        # the step, whose norms are sums of squares of n terms, so that their relative error averages out).
        size = x.abs() + (plain - x).abs() * 4 + 1
        assert ((actual - plain).abs() <= 2 * 16 * 2.0**-53 * size).all()
        return
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    oracle = reference.langevin_step(x.double(), h.double(), coefficients.double(), per_sample=per_sample, **in64)
    assert_error_within_budget(actual, oracle, plain, "langevin_step")

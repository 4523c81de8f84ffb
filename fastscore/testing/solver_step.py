"""What tests of solver_step share: cases, and how they are called."""

import math
from typing import Any

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.ops import solver_step
from fastscore.testing.inputs import as_layout, make_input

C, S, E = 2, -2, -1  # where c, s and e stand in a row

Case = tuple[Tensor, Tensor, list[Tensor], Tensor, dict[str, Tensor]]


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    *,
    terms: int = 1,
    noise: str = "drawn",
    rows: bool = False,
    clip: bool = True,
    exponent: bool = True,
    device: torch.device | str = "cpu",
) -> Case:
    """Arguments (x, h, history, coefficients, keywords) of a call; a third of the elements are clamped."""

    def state(seed: int) -> Tensor:
        return make_input(shape, layout, dtype=dtype, device=device, seed=seed)

    weights = [0.9, -0.7, 1.1 if clip else math.inf, 0.4, 0.6, *(-0.3, 0.2, 0.25)[:terms], 0.5, 0.7]
    coefficients = torch.tensor(weights, dtype=torch.float64)
    x = state(0)
    if rows:
        factors = make_input((x.shape[0], terms + 7), dtype=torch.float64, scale=0.1, mean=1.0, seed=90)
        coefficients = coefficients * factors
    keywords = {"exponent": state(92)} if exponent else {}
    if noise == "given":
        keywords["noise"] = state(91)
    elif noise == "drawn":
        keywords["rng"] = torch.tensor([2**40 + 17, 5], device=device)
        keywords["samples"] = torch.arange(x.shape[0], device=device) * 3 + 2**33
    history = [state(k + 2) for k in range(terms)]
    return x, state(1), history, coefficients.to(device, accumulation_dtype(dtype)), keywords


def call(case: Case, function: Any = solver_step, **more: Any) -> Any:
    """A function of the arguments of solver_step, called with a case."""
    *arguments, keywords = case
    return function(*arguments, **keywords, **more)


def laid_out(case: Case, layout: str) -> Case:
    """The same numbers in another memory format, in memory of their own."""
    x, h, history, coefficients, keywords = case
    moved = {k: as_layout(v.clone(), layout) if v.is_floating_point() else v for k, v in keywords.items()}
    x, h, *history = (as_layout(t.clone(), layout) for t in (x, h, *history))
    return x, h, history, coefficients, moved

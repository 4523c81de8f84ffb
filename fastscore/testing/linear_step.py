"""What tests of linear_step share: cases."""

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.testing.inputs import make_input


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    terms: int = 2,
    noise: str = "drawn",
    per_sample: bool = False,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, list[Tensor], Tensor, dict[str, Tensor]]:
    """Arguments (x, history, coefficients, keywords) of a call."""

    def state(seed: int) -> Tensor:
        return make_input(shape, layout, dtype=dtype, device=device, seed=seed)

    x, history = state(0), [state(k + 1) for k in range(terms)]
    batch = x.shape[0]
    size = (batch, terms + 2) if per_sample else (terms + 2,)
    rows = make_input(size, dtype=accumulation_dtype(dtype), device=device, seed=90)
    if noise == "drawn":
        rng = torch.tensor([2**40 + 17, 5], device=device)
        return x, history, rows, {"rng": rng, "samples": torch.arange(batch, device=device) * 3 + 2**33}
    return x, history, rows, {"noise": state(91)} if noise == "given" else {}

"""How fast is one fused update `a*x + sum_k b_k*h_k + s*z`, against the same formula in PyTorch?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore.ops import linear_step
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled


def _eager(x: Tensor, history: list[Tensor], coefficients: Tensor, draw: bool) -> Tensor:
    out = coefficients[0] * x
    for b, h in zip(coefficients[1:-1], history, strict=True):
        out = out + b * h
    if draw:
        out = out + coefficients[-1] * torch.randn_like(x)
    return out


def _case(
    shape: tuple[int, ...], outputs: int, draw: bool, device: torch.device, dtype: torch.dtype = torch.float32
) -> Case:
    x = make_input(shape, dtype=dtype, device=device)
    history = [make_input(shape, dtype=dtype, device=device, seed=k + 1) for k in range(outputs)]
    coefficients = torch.tensor([0.98, *(0.4, -0.3, 0.2)[:outputs], 0.1], device=device)
    rng, samples = torch.tensor([7, 1], device=device), torch.arange(shape[0], device=device)
    drawn = {"rng": rng, "samples": samples} if draw else {}
    fused_by_compiler = compiled(_eager, device)

    def check() -> None:
        # z is set apart: the three contenders draw different noise, and its own tests hold the generator
        fused = linear_step(x, history, coefficients)
        plain = _eager(x, history, coefficients.to(dtype), draw=False)
        oracle = _eager(x.double(), [h.double() for h in history], coefficients.double(), draw=False)
        assert_error_within_budget(fused, oracle, plain, "linear_step")
        if draw:
            noise = (linear_step(x, history, coefficients, **drawn).double() - oracle) / 0.1
            assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
            assert noise.std() == pytest.approx(1, abs=5 / noise.numel() ** 0.5)

    low = coefficients.to(dtype)
    return Case(
        "linear_step",
        f"{shape} {str(dtype)[6:]}, {outputs} output{'s' * (outputs > 1)}, {'noise' if draw else 'no noise'}",
        {
            "eager": lambda: _eager(x, history, low, draw),
            "torch.compile": lambda: fused_by_compiler(x, history, low, draw),
            "fastscore": lambda: linear_step(x, history, coefficients, **drawn),
        },
        check,
        x,
    )


CASES: dict[str, Callable[[torch.device], Case]] = {
    "stochastic": lambda device: _case((16, 3, 32, 32), 1, True, device),
    "deterministic": lambda device: _case((16, 3, 32, 32), 1, False, device),
    "multistep": lambda device: _case((16, 3, 32, 32), 3, False, device),
    "large": lambda device: _case((16, 3, 256, 256), 1, True, device),
    "large-bfloat16": lambda device: _case((16, 3, 256, 256), 1, True, device, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_linear_step(report, name, contender, device):
    report(CASES[name](device), contender)

"""How fast is the replacement of inpainting, `where(mask, a*known + s*z, x)`, against the same formula in PyTorch?"""

import pytest
import torch
from torch import Tensor

from fastscore.ops import masked_replace_
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled


def _eager(x: Tensor, known: Tensor, mask: Tensor, coefficients: Tensor, draw: bool = True) -> Tensor:
    a, s = coefficients
    value = a * known
    if draw:
        value = value + s * torch.randn_like(x)
    return torch.where(mask, value, x)


def _case(shape: tuple[int, ...], device: torch.device) -> Case:
    x, known = (make_input(shape, device=device, seed=seed) for seed in range(2))
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    mask[..., : shape[-1] // 2] = True  # the left half is known
    coefficients = torch.tensor([0.98, 0.2], device=device)
    drawn = {"rng": torch.tensor([7, 1], device=device), "samples": torch.arange(shape[0], device=device)}
    fused_by_compiler = compiled(_eager, device)

    def check() -> None:
        # z is set apart: the three contenders draw different noise, and its own tests hold the generator
        fused = masked_replace_(x.clone(), known, mask, coefficients)
        oracle = _eager(x.double(), known.double(), mask, coefficients.double(), draw=False)
        assert_error_within_budget(fused, oracle, _eager(x, known, mask, coefficients, draw=False), "masked_replace")
        noise = (masked_replace_(x.clone(), known, mask, coefficients, **drawn).double() - oracle)[mask] / 0.2
        assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
        assert noise.std() == pytest.approx(1, abs=5 / noise.numel() ** 0.5)

    return Case(
        "masked_replace",
        f"{shape} float32, half known",
        {
            "eager": lambda: _eager(x, known, mask, coefficients),
            "torch.compile": lambda: fused_by_compiler(x, known, mask, coefficients),
            "fastscore": lambda: masked_replace_(x, known, mask, coefficients, **drawn),
        },
        check,
        x,
    )


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (16, 3, 256, 256)], ids=str)
def test_masked_replace(report, shape, contender, device):
    report(_case(shape, device), contender)

"""How fast is the error estimate of an adaptive solver, against the published formula operator by operator?"""

import pytest
import torch
from torch import Tensor

from fastscore.ops import error_norm
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

ATOL, RTOL, TERMS = 1e-3, 1e-2, 9


def _eager(terms: list[Tensor], coefficients: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Hairer, Norsett, Wanner 1993, eq. II.4.10 and 4.11, per sample."""
    error = coefficients[0] * terms[0]
    for c, term in zip(coefficients[1:], terms[1:], strict=True):
        error = error + c * term
    scale = ATOL + RTOL * torch.maximum(u.abs(), v.abs())
    return (error / scale).square().flatten(1).mean(1).sqrt()


def _case(shape: tuple[int, ...], device: torch.device) -> Case:
    terms = [make_input(shape, device=device, seed=k) for k in range(TERMS)]
    u, v = (make_input(shape, device=device, seed=seed) for seed in (50, 51))
    coefficients = make_input((TERMS,), device=device, scale=0.01, seed=90)
    fused_by_compiler = compiled(_eager, device)

    def check() -> None:
        fused = error_norm(terms, coefficients, u, v, atol=ATOL, rtol=RTOL)
        oracle = _eager([t.double() for t in terms], coefficients.double(), u.double(), v.double())
        assert_error_within_budget(fused, oracle, _eager(terms, coefficients, u, v), "error_norm")

    return Case(
        "error_norm",
        f"{shape} float32, {TERMS} terms",
        {
            "eager": lambda: _eager(terms, coefficients, u, v),
            "torch.compile": lambda: fused_by_compiler(terms, coefficients, u, v),
            "fastscore": lambda: error_norm(terms, coefficients, u, v, atol=ATOL, rtol=RTOL),
        },
        check,
        u,
    )


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (16, 3, 256, 256)], ids=str)
def test_error_norm(report, shape, contender, device):
    report(_case(shape, device), contender)

"""How fast is attention, in value, with gradients and with a tangent, beside torch's fused one and a written-out one?

torch's fused attention takes no part where tangents are asked for: it has no forward-mode derivative.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.ops import attention
from fastscore.testing import assert_error_within_budget
from fastscore.testing.attention import eager
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case

CONTENDERS = ("eager", "sdpa", "fastscore")


def _value(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, along: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return function(q, k, v)


def _gradients(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, along: list[Tensor]) -> Tensor:
    """The gradient of q; those of k and v are computed with it."""
    leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
    return torch.autograd.grad(function(*leaves), leaves, along[0])[0]


def _tangent(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, along: list[Tensor]) -> Tensor:
    """The tangent; the value is computed with it."""
    return torch.func.jvp(function, (q, k, v), tuple(along))[1]


MODES = {"value": _value, "gradients": _gradients, "tangent": _tangent}
FUNCTIONS = {"eager": eager, "sdpa": F.scaled_dot_product_attention, "fastscore": attention}


def _case(shape: tuple[int, ...], dtype: torch.dtype, mode: str, device: torch.device) -> Case:
    b, h, n, d = shape
    # (B, N, H, D) in memory, as projections give it
    q, k, v, *along = (
        make_input((b, n, h, d), dtype=dtype, device=device, seed=seed).transpose(1, 2) for seed in range(6)
    )
    call = MODES[mode]
    functions = {name: f for name, f in FUNCTIONS.items() if mode != "tangent" or name != "sdpa"}

    def check() -> None:
        exact = call(eager, q.double(), k.double(), v.double(), [t.double() for t in along])
        plain = call(eager, q, k, v, along)
        for name, function in functions.items():
            result = call(function, q, k, v, along)
            assert_error_within_budget(result, exact, plain, name, factor=2 if mode == "value" else 3)

    return Case(
        "attention",
        f"{shape} {str(dtype)[6:]}, {mode}",
        {name: lambda function=function: call(function, q, k, v, along) for name, function in functions.items()},
        check,
        q,
    )


CASES = [
    *(((4, 1, 256, 256), torch.float32, mode, "cpu") for mode in MODES),  # CIFAR-10: 16 x 16 pixels, one head
    *(((1, 4, 1024, 64), torch.float32, mode, "cpu") for mode in MODES),
    *(((16, 1, 256, 256), torch.float32, mode, "cuda") for mode in MODES),
    *(((16, 8, 1024, 64), torch.bfloat16, mode, "cuda") for mode in MODES),
    *(((4, 8, 4096, 64), torch.bfloat16, mode, "cuda") for mode in MODES),
    *(((4, 1, 1024, 512), torch.bfloat16, mode, "cuda") for mode in MODES),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{str(case[1])[6:]}-{case[2]}-{case[3]}")
def test_attention(report, case, contender, device):
    if case[3] != device.type:
        pytest.skip(f"a size for {case[3]}; this run measures on {device.type}")
    if case[2] == "tangent" and contender == "sdpa":
        pytest.skip("torch's fused attention has no forward-mode derivative")
    report(_case(*case[:3], device), contender)

"""How fast is GroupNorm + SiLU as one op, in both memory formats, forward, with gradients, and with a tangent?"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore import reference
from fastscore.ops import group_norm_silu
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

GROUPS = 32


def _eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, GROUPS, weight, bias))


def _fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return group_norm_silu(x, GROUPS, weight, bias)


def _exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.group_norm_silu(x, GROUPS, weight, bias)


def _tangent(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, x_t: Tensor) -> Tensor:
    return torch.func.jvp(lambda x: function(x, weight, bias), (x,), (x_t,))[1]


def _tensors(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> list[Tensor]:
    """x, weight, bias (as initialized networks have them, a little moved), and a second tensor like x."""
    x, other = (make_input(shape, layout, dtype=dtype, seed=seed) for seed in (0, 3))
    weight = 1 + 0.1 * make_input((shape[1],), dtype=dtype, seed=1)
    return [x, weight, 0.1 * make_input((shape[1],), dtype=dtype, seed=2), other]


def _case(shape: tuple[int, ...], layout: str, dtype: torch.dtype, mode: str) -> Case:
    x, weight, bias, other = _tensors(shape, layout, dtype)
    label = f"{shape} {str(dtype)[6:]}, {layout}, {mode}"
    by_compiler = compiled(_eager)
    functions = {"eager": _eager, "torch.compile": by_compiler, "fastscore": _fused}

    def call(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
        """What is timed: the result, the gradient of x (with those of the parameters), or the tangent."""
        if mode == "tangent":
            return _tangent(function, x, weight, bias, other)
        if mode == "forward":
            with torch.no_grad():
                return function(x, weight, bias)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        return torch.autograd.grad(function(*leaves), leaves, other)[0]

    def check() -> None:
        torch._dynamo.reset()  # it keeps at most eight versions of `_eager`, and then gives up compiling it
        exact = call(_exact, *(t.detach().double() for t in (x, weight, bias, other)))
        plain = call(_eager, x, weight, bias, other)
        for name in ("fastscore", "torch.compile"):
            factor = 2 if mode == "forward" else 3
            assert_error_within_budget(call(functions[name], x, weight, bias, other), exact, plain, name, factor)

    contenders = {
        name: lambda function=function: call(function, x, weight, bias, other) for name, function in functions.items()
    }
    if mode == "tangent":  # the compiler takes no forward mode through a compiled function: it compiles the derivative
        derivative = compiled(lambda *tensors: _tangent(_eager, *tensors))
        contenders["torch.compile"] = lambda: derivative(x, weight, bias, other)
        functions["torch.compile"] = _eager
    return Case("group_norm_silu", label, contenders, check, x)


F32, BF16 = torch.float32, torch.bfloat16
CASES = [
    *(((n, 128, 32, 32), layout, F32, "forward") for n in (4, 16) for layout in ("contiguous", "channels_last")),
    ((4, 128, 32, 32), "contiguous", BF16, "forward"),
    *(((4, 128, 32, 32), layout, F32, "gradients") for layout in ("contiguous", "channels_last")),
    ((4, 128, 32, 32), "contiguous", F32, "tangent"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}-{case[3]}")
def test_group_norm_silu(report, case, contender):
    report(_case(*case), contender)

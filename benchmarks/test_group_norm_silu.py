"""How fast is GroupNorm + SiLU as one op, in both memory formats, forward, into memory that is there, with gradients?

The floor of a forward pass is a copy of x into memory that is there.
"""

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


def _fused(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    return group_norm_silu(x, GROUPS, weight, bias, out=out)


def _exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.group_norm_silu(x, GROUPS, weight, bias)


def _forward(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Tensor:
    with torch.no_grad():
        return function(x, weight, bias)


def _gradients(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x; those of weight and bias are computed with it."""
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    return torch.autograd.grad(function(*leaves), leaves, grad)[0]


def _into(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """The result in `out`, where a function can put it there."""
    with torch.no_grad():
        return function(x, weight, bias, **({"out": out} if function is _fused else {}))


MODES = {"forward": _forward, "into": _into, "gradients": _gradients}


def _case(shape: tuple[int, ...], layout: str, dtype: torch.dtype, mode: str, device: torch.device) -> Case:
    x, grad = (make_input(shape, layout, dtype=dtype, device=device, seed=seed) for seed in (0, 3))
    weight, bias = (0.1 * make_input(shape[1:2], dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    tensors = (x, 1 + weight, bias, grad)  # weights as after initialization, a little moved
    call = MODES[mode]
    functions = {"eager": _eager, "torch.compile": compiled(_eager, device), "fastscore": _fused}

    def check() -> None:
        torch._dynamo.reset()  # it keeps at most eight versions of `_eager`, and then gives up compiling it
        exact = call(_exact, *(tensor.detach().double() for tensor in tensors))
        plain = call(_eager, *tensors)
        for name in ("torch.compile", "fastscore"):
            result = call(functions[name], *tensors)
            assert_error_within_budget(result, exact, plain, name, factor=3 if mode == "gradients" else 2)

    return Case(
        "group_norm_silu",
        f"{shape} {str(dtype)[6:]}, {layout}, {mode}",
        {name: lambda function=function: call(function, *tensors) for name, function in functions.items()},
        check,
        x,
    )


CASES = [
    *(
        ((n, 128, 32, 32), layout, torch.float32, mode)
        for n in (4, 16, 64)
        for layout in ("contiguous", "channels_last")
        for mode in ("forward", "into")
    ),
    ((4, 128, 32, 32), "contiguous", torch.bfloat16, "forward"),
    *(((4, 128, 32, 32), layout, torch.float32, "gradients") for layout in ("contiguous", "channels_last")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}-{case[3]}")
def test_group_norm_silu(report, case, contender, device):
    if case[-1] == "into" and device.type != "cpu":
        pytest.skip("on a CPU only")
    report(_case(*case, device), contender)

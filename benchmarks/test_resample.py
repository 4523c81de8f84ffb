"""How fast is resampling by a FIR filter, against the depthwise convolutions it is made of otherwise?"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastscore.nn.resample import fir_taps
from fastscore.ops import resample
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

TAPS = fir_taps((1, 3, 3, 1))
OPTIONS = {
    "up": {"up": 2, "padding": (2, 1)},
    "down": {"down": 2, "padding": (1, 1)},
    "filter": {"padding": (2, 2)},
}


def _convolved(x: Tensor, mode: str) -> Tensor:
    weight = TAPS.to(x).expand(x.shape[1], 1, -1, -1)  # symmetric: a convolution and a correlation
    if mode == "up":
        return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])
    if mode == "down":
        return F.conv2d(x, weight, stride=2, padding=1, groups=x.shape[1])
    return F.conv2d(x, weight, padding=2, groups=x.shape[1])


def _case(shape: tuple[int, ...], layout: str, mode: str, gradient: bool, device: torch.device) -> Case:
    x = make_input(shape, layout, device=device).requires_grad_(gradient)
    taps, grad = TAPS.to(x), make_input(tuple(_convolved(x, mode).shape), layout, device=device, seed=1)

    def fused(x: Tensor) -> Tensor:
        return resample(x, taps, **OPTIONS[mode])

    def of(function: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(function(x), x, grad)[0] if gradient else function(x)

    contenders = {
        "eager": of(lambda x: _convolved(x, mode)),
        "torch.compile": of(compiled(lambda x: _convolved(x, mode), device)),
        "fastscore": of(fused),
    }

    def check() -> None:
        wide = x.detach().double().requires_grad_()
        exact = _convolved(wide, mode)
        if gradient:
            (exact,) = torch.autograd.grad(exact, wide, grad.double())
        plain = contenders["eager"]()
        assert_error_within_budget(contenders["fastscore"](), exact, plain, "resample", factor=3 if gradient else 2)

    label = f"{shape} float32, {layout}, {mode}{', gradient' if gradient else ''}"
    return Case("resample", label, contenders, check, x.detach())


CASES = [
    *(((4, 128, 32, 32), layout, mode, False) for layout in ("contiguous", "channels_last") for mode in OPTIONS),
    ((4, 128, 32, 32), "contiguous", "up", True),
    ((4, 128, 32, 32), "contiguous", "down", True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]}-{case[2]}{'-gradient' * case[3]}")
def test_resample(report, case, contender, device):
    report(_case(*case, device), contender)

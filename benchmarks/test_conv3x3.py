"""How fast is a 3x3 convolution by Winograd's algorithm, against torch's in its better memory format?"""

import pytest
import torch
import torch.nn.functional as F

from fastscore.ops import conv3x3
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

CONTENDERS = ("eager", "eager, channels last", "torch.compile", "fastscore")
# (B, C, H, W), outputs: layers of the CIFAR-10 U-Nets
LAYERS = [
    ((16, 256, 16, 16), 256),
    ((4, 128, 32, 32), 128),
    ((4, 256, 16, 16), 256),
    ((4, 512, 16, 16), 256),
    ((4, 256, 8, 8), 256),
    ((1, 128, 32, 32), 128),
    ((1, 256, 16, 16), 256),
    ((1, 256, 8, 8), 256),
]
CASES = [*((*layer, torch.float32) for layer in LAYERS), *((*layer, torch.bfloat16) for layer in LAYERS[:2])]


def _case(shape: tuple[int, ...], outputs: int, dtype: torch.dtype, device: torch.device) -> Case:
    x = make_input(shape, "channels_last", dtype=dtype, device=device)
    weight = make_input((outputs, shape[1], 3, 3), dtype=dtype, device=device, scale=(9 * shape[1]) ** -0.5, seed=1)
    bias = make_input((outputs,), dtype=dtype, device=device, seed=2)
    packed, contiguous = weight.contiguous(memory_format=torch.channels_last), x.contiguous()
    contenders = {
        "eager": lambda: F.conv2d(contiguous, weight, bias, padding=1),
        "eager, channels last": lambda: F.conv2d(x, packed, bias, padding=1),
        "torch.compile": compiled(lambda: F.conv2d(x, packed, bias, padding=1), device),
        "fastscore": lambda: conv3x3(x, weight, bias),
    }

    def check() -> None:
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        error, theirs = (
            float((contenders[name]().double() - exact).norm()) for name in ("fastscore", "eager, channels last")
        )
        assert error <= 2 * theirs, (error, theirs)

    return Case("conv3x3", f"{shape} to {outputs} channels, {str(dtype)[6:]}", contenders, check, x)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}")
def test_conv3x3(report, case, contender, device):
    report(_case(*case, device), contender)

"""What is added to the value of a layer, as it is or looked at in another shape: the layer stays in the program."""

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore.engine import Program

pytestmark = pytest.mark.skipif(fastscore._library.NATIVE is None, reason="the engine's ops are native")

B, C, H, W = 2, 12, 6, 8
N = H * W


def image(channels: int = C) -> Tensor:
    return torch.randn(B, channels, H, W, generator=torch.Generator().manual_seed(0))


# How the value of a layer is looked at, the input of the layer, what is added, and whether the call adds it.
CASES = {
    "rows of one matrix": (
        lambda: nn.Linear(C, C), lambda x: x.permute(0, 2, 3, 1).reshape(B * N, C), lambda h: h.view(B, N, C),
        lambda x: x.flatten(2).transpose(1, 2), True,
    ),
    "rows as an image": (
        lambda: nn.Linear(C, C), lambda x: x.flatten(2).transpose(1, 2),
        lambda h: h.transpose(1, 2).unflatten(2, (H, W)), lambda x: x, True,
    ),
    "an image as rows": (
        lambda: nn.Conv2d(C, C, 3, padding=1), lambda x: x, lambda h: h.flatten(2).transpose(1, 2),
        lambda x: x.flatten(2).transpose(1, 2), True,
    ),
    "channels last in the shape": (
        lambda: nn.Conv2d(C, C, 3, padding=1), lambda x: x, lambda h: h.permute(0, 2, 3, 1),
        lambda x: x.permute(0, 2, 3, 1), False,
    ),
    "rows and columns exchanged": (
        lambda: nn.Conv2d(C, C, 3, padding=1), lambda x: x, lambda h: h.transpose(2, 3), lambda x: x.transpose(2, 3),
        False,
    ),
    "channels in two halves": (
        lambda: nn.Linear(C, C), lambda x: x.flatten(2).transpose(1, 2), lambda h: h.reshape(B, 2 * N, C // 2),
        lambda x: x.reshape(B, 2 * N, C // 2), False,
    ),
    "channels before rows": (
        lambda: nn.Linear(C, C), lambda x: x.flatten(2).transpose(1, 2), lambda h: h.transpose(1, 2),
        lambda x: x.flatten(2), False,
    ),
    "rows as two rows of pixels": (
        lambda: nn.Conv2d(C, C, 3, padding=1), lambda x: x, lambda h: h.reshape(B, C, N, 1),
        lambda x: x.reshape(B, C, N, 1), True,
    ),
    "images with channels last": (
        lambda: nn.Linear(C, C), lambda x: x.permute(0, 2, 3, 1), lambda h: h, lambda x: x.permute(0, 2, 3, 1), True,
    ),
    "a cube with channels last": (
        lambda: nn.Linear(6, 6), lambda x: x[:, :6, :, :6].permute(0, 2, 3, 1), lambda h: h,
        lambda x: x[:, :6, :, :6].transpose(2, 3), True,
    ),
    "a number for each row of a cube": (
        lambda: nn.Linear(6, 6), lambda x: x[:, :6, :, :6].permute(0, 2, 3, 1), lambda h: h,
        lambda x: x[:, :6, :1, :1], False,
    ),
    "a number for each sample, flat": (
        lambda: nn.Conv2d(C, 1, 1), lambda x: x[:, :, :1, :1], lambda h: h.flatten(), lambda x: x[0, 0, 0, :1], False,
    ),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, case: str):
        super().__init__()
        layer, *self.steps, self.inside = CASES[case]
        self.layer = layer()

    def forward(self, x: Tensor) -> Tensor:
        before, look, added = self.steps
        return (look(self.layer(before(x))) + added(x)) * 0.5


@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_layer_is_added(case):
    torch.manual_seed(1)
    network = Net(case).eval()
    with torch.no_grad():
        program = Program(network, (image(),), {}, torch.get_num_threads())
        actual, expected = program.run([image()]), network(image())
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert (not any("add" in name for name in program.calls)) == network.inside

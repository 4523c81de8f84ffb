"""Networks and hooks that tests of samplers share."""

import torch
from torch import Tensor, nn

from fastscore.samplers import Hook, Moment


class Smooth(nn.Module):
    """A smooth network whose output for a sample depends on that sample alone, also in its last bit."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (B, ...) and label (B,) -> like x."""
        return torch.tanh(x * 0.7) - 0.1 * x + label.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)).sin() * 0.05


class Held(nn.Module):
    """A network that costs nothing: returns one of the six tensors that it holds, in turn."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        outputs = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
        self.outputs, self.calls = [out.clone() for out in outputs], 0

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The next one."""
        self.calls += 1
        return self.outputs[self.calls % 6]


class Watching(Hook):
    """Sees the clean image and leaves it."""

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> None:
        """Nothing."""
        return

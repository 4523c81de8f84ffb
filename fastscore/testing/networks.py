"""Networks and hooks that tests of samplers share."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastscore.samplers import Hook, Moment, Sampler
from fastscore.sde import VESDE, VPSDE, SubVPSDE
from fastscore.testing.traffic import no_host_sync


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


class Watched(Held):
    """Held, and a value that is read on the host between the first call and the last, number `calls`, raises."""

    def __init__(self, shape: tuple[int, ...], calls: int) -> None:
        super().__init__(shape)
        self.last, self.region = calls - 1, ExitStack()

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """The next one."""
        if self.calls == 0:
            self.region.enter_context(no_host_sync())
        if self.calls == self.last:
            self.region.close()
        return super().forward(x, label)


def assert_reads_nothing_between_steps(
    make: Callable[[nn.Module], Sampler],
    shape: tuple[int, ...],
    calls: int,
    channels: int | None = None,
    **options: Any,
) -> None:
    """A sampler reads nothing on the host between its first and its last network call, number `calls`.

    Args:
        make: the sampler of a network.
        shape: of the state, (B, C, ...).
        calls: network calls of a run.
        channels: of the network's output; None: C.
        **options: of `Sampler.sample`.
    """
    model = Watched((shape[0], channels or shape[1], *shape[2:]), calls)
    with model.region:  # closed also where the run stops before its last call
        make(model).sample(torch.zeros(shape), seed=0, **options)
    assert model.calls == calls


class Watching(Hook):
    """Sees the clean image and leaves it."""

    def on_denoised(self, denoised: Tensor, x: Tensor, moment: Moment) -> None:
        """Nothing."""
        return


class PeerDrift:
    """A network, for labels t, whose probability-flow drift is the one score_sde computes, in float32."""

    def __init__(self, sde: VESDE | VPSDE | SubVPSDE, model: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.sde, self.model = sde, model

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        f, g = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in (self.sde.drift_coefficient(t), self.sde.diffusion(t)))
        return 2 * (f * x - self.drift(x.float(), t.float()).double()) / g.square()

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """The drift (B, ...) at the states x and times t (B,)."""
        sde, shape = self.sde, (-1, *[1] * (x.ndim - 1))
        if isinstance(sde, VESDE):
            sigma = sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** t
            g = sigma * math.sqrt(2 * math.log(sde.sigma_max / sde.sigma_min))
            return -(g.reshape(shape) ** 2) * self.model(x, sigma) * 0.5
        spread = sde.beta_max - sde.beta_min
        beta = sde.beta_min + t * spread
        variance = 1 - torch.exp(2 * (-0.25 * t**2 * spread - 0.5 * t * sde.beta_min))
        if isinstance(sde, SubVPSDE):
            std, g = variance, torch.sqrt(beta * (1 - torch.exp(-2 * sde.beta_min * t - spread * t**2)))
        else:
            std, g = torch.sqrt(variance), torch.sqrt(beta)
        score = -self.model(x, t * 999) / std.reshape(shape)
        return -0.5 * beta.reshape(shape) * x - g.reshape(shape) ** 2 * score * 0.5


def disturb(model: nn.Module) -> None:
    """Parameters that start at zero or one made random: they would hide what is before them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)

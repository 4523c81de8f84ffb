"""Networks drawn at random from what score networks are made of: a program gives the numbers of the network."""

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastscore
from fastscore.engine import Program, layers
from fastscore.ops import attention, group_norm_silu, resample

pytestmark = pytest.mark.skipif(fastscore._library.NATIVE is None, reason="the engine's ops are native")

BATCH, SIZES = 2, (4, 6, 8)  # channels and sides come from one list, so that they are often equal


class RandomNetwork(nn.Module):
    """`steps` operations, each of values that earlier ones made; returns the last values and one that was used."""

    def __init__(self, seed: int, steps: int = 14):
        super().__init__()
        self.draw = random.Random(seed)
        self.shape = (BATCH, *(self.draw.choice(SIZES) for _ in range(3)))
        self.layers, self.program = nn.ModuleList(), []
        values = [torch.zeros(self.shape), torch.zeros(BATCH)]
        with torch.no_grad():
            while len(self.program) < steps:
                step = self._step(values)
                if step is not None:
                    self.program.append(step)
                    values.append(step[0](*(values[i] for i in step[1])))
        self.results = [*range(len(values) - 3, len(values)), self.draw.randrange(2, len(values))]

    def forward(self, x: Tensor, t: Tensor) -> list[Tensor]:
        values = [x, t]
        for function, arguments in self.program:
            values.append(function(*(values[i] for i in arguments)))
        return [values[i] for i in self.results]

    def _step(self, values):
        """A function and the indices of its arguments; None if what was drawn does not fit."""
        i = self.draw.choice([0, *range(2, len(values)), len(values) - 1])
        x = values[i]
        kinds = [self._pointwise, self._views, self._two, self._linear, self._norm, self._parts]
        if x.dim() == 4:
            kinds += [self._convolution, self._convolution, self._convolution, self._images, self._embedding]
            kinds += [self._fused_norm, self._fused_norm, self._fused_resampling]
        if x.dim() >= 3:
            kinds.append(self._attention)
        function = self.draw.choice(kinds)(x, values)
        if function is None:
            return None
        function, *others = function if isinstance(function, tuple) else (function,)
        return function, (i, *others)

    def _kept(self, layer: nn.Module) -> nn.Module:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        self.layers.append(layer)
        return layer

    def _convolution(self, x, values):
        kernel, stride = self.draw.choice(((3, 1), (3, 1), (3, 2), (1, 1), (1, 2)))
        padding = self.draw.choice((kernel // 2, 0))
        if x.shape[2] + 2 * padding < kernel or x.shape[3] + 2 * padding < kernel:
            return None
        bias, outputs = self.draw.random() < 0.7, self.draw.choice(SIZES)
        return self._kept(nn.Conv2d(x.shape[1], outputs, kernel, stride, padding, bias=bias))

    def _linear(self, x, values):
        return self._kept(nn.Linear(x.shape[-1], self.draw.choice(SIZES), bias=self.draw.random() < 0.7))

    def _norm(self, x, values):
        if x.dim() < 2 or x.shape[1] % 2 or x[0].numel() < 8:
            return None
        return self._kept(nn.GroupNorm(2, x.shape[1]))

    def _fused_norm(self, x, values):
        if x.shape[1] % 2 or len(x) != BATCH:
            return None
        names = [name for name in ("add", "scale", "shift") if self.draw.random() < 0.3]
        layers = {name: self._kept(nn.Linear(1, x.shape[1])) for name in names}
        norm, silu = self._kept(nn.GroupNorm(2, x.shape[1])), self.draw.random() < 0.7

        def call(x, t):
            rows = {name: layer(t[:, None]) for name, layer in layers.items()}
            return group_norm_silu(x, 2, norm.weight, norm.bias, **rows, silu=silu)

        return call, 1

    def _fused_resampling(self, x, values):
        up, down = self.draw.choice(((2, 1), (1, 2)))
        if min(x.shape[2:]) < 4 or (x.numel() > 4000 and up > 1):
            return None
        taps = torch.tensor([1.0, 3, 3, 1]).outer(torch.tensor([1.0, 3, 3, 1])) / 64
        return lambda x: resample(x, taps, up=up, down=down, padding=(2, 1) if up > 1 else (1, 1))

    def _pointwise(self, x, values):
        scale = self.draw.choice((0.5, 2.0, -1.0))
        return self.draw.choice((F.silu, torch.tanh, lambda x: x * scale, lambda x: x / scale, lambda x: x + scale))

    def _embedding(self, x, values):
        if len(x) != BATCH:
            return None
        layer = self._kept(nn.Linear(1, x.shape[1]))
        if self.draw.random() < 0.5:
            return lambda x, t: x + layer(t[:, None])[:, :, None, None], 1
        return lambda x, t: x * (1 + layer(t[:, None])[:, :, None, None]), 1

    def _images(self, x, values):
        choices = [lambda x: F.pad(x, (0, 1, 0, 1)), lambda x: F.pad(x, (1, 1, 1, 1))]
        if x.numel() < 4000:
            choices.append(lambda x: F.interpolate(x, scale_factor=2.0))
        if min(x.shape[2:]) > 1:
            choices.append(lambda x: F.avg_pool2d(x, 2))
        return self.draw.choice(choices)

    def _views(self, x, values):
        first, second = self.draw.randrange(x.dim()), self.draw.randrange(x.dim())
        choices = [lambda x: x.transpose(first, second)]
        if x.dim() == 4:
            choices += [
                lambda x: x.permute(0, 2, 3, 1),
                lambda x: x.flatten(2),
                lambda x: x.flatten(2).transpose(1, 2),
                lambda x: x.reshape(x.shape[0], x.shape[1], -1, 1),
            ]
        if x.dim() == 3:
            choices += [lambda x: x.reshape(-1, x.shape[2]), lambda x: x[:, None]]
            if x.shape[2] % 2 == 0:
                choices.append(lambda x: x.unflatten(2, (2, -1)))
            if x.shape[1] % 2 == 0:
                choices.append(lambda x: x.transpose(1, 2).unflatten(2, (2, -1)))
        if x.dim() == 2 and x.shape[0] % BATCH == 0:
            choices.append(lambda x: x.view(BATCH, -1, x.shape[1]))
        return self.draw.choice(choices)

    def _two(self, x, values):
        if x.dim() == 4 and self.draw.random() < 0.5:
            sides = (x.shape[0], *x.shape[2:])
            fitting = [i for i, v in enumerate(values) if v.dim() == 4 and (v.shape[0], *v.shape[2:]) == sides]
            return lambda x, y: torch.cat([x, y], 1), self.draw.choice(fitting)
        same = [i for i, v in enumerate(values) if v.shape == x.shape]
        return self.draw.choice((torch.add, torch.add, torch.sub, torch.mul)), self.draw.choice(same)

    def _parts(self, x, values):
        axis = self.draw.randrange(x.dim())
        if x.shape[axis] % 2:
            return None
        which = self.draw.randrange(2)
        if self.draw.random() < 0.5:
            return lambda x: x.chunk(2, axis)[which]
        return lambda x: x.narrow(axis, which, x.shape[axis] // 2)

    def _attention(self, x, values):
        if x.dim() == 4 and self.draw.random() < 0.5:
            return lambda x: attention(x, x, x)
        if x.dim() == 3:
            return lambda x: F.scaled_dot_product_attention(x, x, x)
        same = [i for i, v in enumerate(values) if v.shape == x.shape]
        k, v = self.draw.choice(same), self.draw.choice(same)
        return F.scaled_dot_product_attention, k, v


@pytest.mark.parametrize("seed", range(80))
def test_a_program_gives_the_numbers_of_the_network(seed, monkeypatch):
    if seed % 2:
        monkeypatch.setattr(layers, "LARGE", 0)  # norms take the statistics of the convolutions in front of them
    torch.manual_seed(seed)
    network = RandomNetwork(seed).eval()
    arguments = torch.randn(network.shape), torch.rand(BATCH)
    with torch.no_grad():
        program = Program(network, arguments, {}, torch.get_num_threads())
        for _ in range(2):
            for actual, expected in zip(program.run(arguments), network(*arguments), strict=True):
                assert actual.shape == expected.shape
                # sums in another order, whose differences later steps may enlarge
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
            arguments = torch.randn(network.shape), torch.rand(BATCH)

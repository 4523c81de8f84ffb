"""How long does a U-Net take on a CPU: as it comes, under other runtimes, and after `accelerate(optimize="cpu")`?

DDPM for CIFAR-10 as diffusers has it (35.7 million weights), NCSN++ and DDPM++ for CIFAR-10 (62.8 and 61.8 million),
with random weights, in float32. Contenders other than ours get the last two on the layers of torch. The time labels
change from call to call, as they do in a sampler. Every contender must be within `TOLERANCE` of the network in float64
before anything is timed; its error is recorded beside its time, and so are the seconds until its first result (the
export of the network, compilation, laying out of weights), and the page faults of its second call.

Ours and eager are compared in two more things on the first network: the time of a forward with its backward, and the
memory of a forward at the largest batch.
"""

import copy
import itertools
import resource
import time
from dataclasses import dataclass, field
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import fastscore
from fastscore.testing import unets
from fastscore.testing.memory import peak_memory
from fastscore.testing.runtimes import RUNTIMES, Forward, why_not, without_gradients
from fastscore.testing.timing import Case

CONTENDERS = (*RUNTIMES, "fastscore")
TOLERANCE = 1e-4
BATCHES = (1, 4, 16)
PAUSE = 0.02  # threads of OpenMP spin for 4 ms after the last region
QUICK = ("-1-ddpm]",)


class Images(nn.Module):
    """A network of diffusers that returns its images alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.network(x, labels).sample


@dataclass(frozen=True)
class Network:
    """A network as its library has it, and on torch's layers; time labels at the start and the end of sampling."""

    about: str
    stock: nn.Module
    plain: nn.Module
    ends: tuple[float, float]
    dtype: torch.dtype = torch.float32

    def labels(self, batch: int, shift: float = 0.0) -> Tensor:
        """(B,), one for each sample, spread between the ends; `shift` in [0, 1] moves them."""
        place = (torch.arange(batch) + 0.5 + 0.5 * shift) / (batch + 0.5)
        first, last = self.ends
        if first > 0:
            return (first * (last / first) ** place).to(self.dtype)
        return (first + (last - first) * place).to(self.dtype)


@lru_cache(1)
def network(name: str) -> Network:
    torch.manual_seed(0)
    if name == "ddpm":
        stock = unets.ddpm_cifar10()
        return Network("UNet2DModel (DDPM, CIFAR-10)", stock, Images(stock), (0, 999), torch.int64)
    stock = unets.score_sde(f"{name}-cifar10-continuous")
    ends = (0.01, 50.0) if name == "ncsnpp" else (0, 999)
    return Network({"ncsnpp": "NCSN++", "ddpmpp": "DDPM++"}[name] + " (CIFAR-10)", stock, unets.on_torch(stock), ends)


def accelerated(net: Network) -> tuple[nn.Module, Forward]:
    """A copy of it that is ours, and its forward."""
    fast = copy.deepcopy(net.stock)
    fastscore.accelerate(fast, optimize="cpu")
    return fast, Images(fast) if isinstance(net.plain, Images) else fast


@dataclass
class Prepared:
    """The contenders of a network and a batch, and what was seen of each on the way."""

    case: Case
    error: dict[str, float] = field(default_factory=dict)
    ready_seconds: dict[str, float] = field(default_factory=dict)
    page_faults: dict[str, int] = field(default_factory=dict)


def page_faults() -> int:
    """Of this process, of pages that were not read from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@lru_cache(1)
def prepared(name: str, batch: int) -> Prepared:
    net = network(name)
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels, others = net.labels(batch), net.labels(batch, shift=1.0)
    result = Prepared(Case("network", f"{net.about} batch {batch}", {}, lambda: None, x, floor=False, pause=PAUSE))
    first: dict[str, Tensor] = {}
    for contender in CONTENDERS:
        if why_not(contender):
            continue
        start = time.perf_counter()
        if contender == "fastscore":
            forward = without_gradients(accelerated(net)[1])
        else:
            forward = RUNTIMES[contender](net.plain, x, labels)
        first[contender] = forward(x, labels).clone()
        result.ready_seconds[contender] = time.perf_counter() - start
        before = page_faults()
        forward(x, others)
        result.page_faults[contender] = page_faults() - before
        turns = itertools.cycle((labels, others))
        result.case.contenders[contender] = lambda forward=forward, turns=turns: forward(x, next(turns))

    exact_network = copy.deepcopy(net.plain).double()
    with torch.no_grad():
        exact = exact_network(x.double(), labels if net.dtype == torch.int64 else labels.double())
    for contender, output in first.items():
        result.error[contender] = unets.relative_error(output, exact)
    assert max(result.error.values()) <= TOLERANCE, result.error
    return result


@pytest.fixture(autouse=True)
def on_cpu(device):
    if device.type != "cpu":
        pytest.skip("about CPUs; give --device cpu")


@pytest.mark.parametrize("name", ["ddpm", "ncsnpp", "ddpmpp"])
@pytest.mark.parametrize("batch", BATCHES)
def test_forward(report, benchmark, name, batch, contender):
    if name == "ddpm":
        pytest.importorskip("diffusers")
    if missing := why_not(contender):
        pytest.skip(missing)
    made = prepared(name, batch)
    report(made.case, contender)
    benchmark.extra_info.update(
        relative_error=made.error[contender],
        ready_seconds=made.ready_seconds[contender],
        page_faults=made.page_faults[contender],
    )


def _only_eager_and_ours(contender: str) -> None:
    pytest.importorskip("diffusers")
    if contender not in ("eager", "fastscore"):
        pytest.skip("eager and ours are compared")


@lru_cache(1)
def training(batch: int) -> Case:
    """The gradients of all parameters for the sum of squares of the output."""
    net = network("ddpm")
    modules = {"eager": net.stock, "fastscore": accelerated(net)[0]}
    x, labels = torch.randn(batch, 3, 32, 32), net.labels(batch)

    def gradients(module: nn.Module) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x, labels).sample.square().sum(), list(module.parameters()))

    def check() -> None:
        exact = copy.deepcopy(net.stock).double()
        loss = exact(x.double(), labels).sample.square().sum()
        wanted = torch.autograd.grad(loss, list(exact.parameters()))
        size = max(float(want.abs().max()) for want in wanted)
        for name, module in modules.items():
            error = max(float((g - want).abs().max()) for g, want in zip(gradients(module), wanted, strict=True))
            assert error <= TOLERANCE * size, f"{name}: {error} of {size}"

    contenders = {name: lambda module=module: gradients(module) for name, module in modules.items()}
    return Case("network_training", f"{net.about} batch {batch}, forward + backward", contenders, check, x, floor=False)


@pytest.mark.parametrize("batch", [4])
def test_forward_and_backward(report, contender, batch):
    _only_eager_and_ours(contender)
    report(training(batch), contender)


@pytest.mark.parametrize("batch", BATCHES[-1:])
def test_memory(report, benchmark, contender, batch):
    """Of a forward, and what a program of ours keeps for the values of its calls; not of its transformed weights."""
    _only_eager_and_ours(contender)
    net = network("ddpm")
    fast, ours = accelerated(net)
    forward = without_gradients(net.plain if contender == "eager" else ours)
    x, labels = torch.randn(batch, 3, 32, 32), net.labels(batch)

    def check() -> None:
        forward(x, labels)
        peak = peak_memory(lambda: forward(x, labels), x.device)
        planned = sum(program.arena_bytes for program in fast._fused_engine.programs.values())
        assert (planned > 0) == (contender == "fastscore")
        benchmark.extra_info.update(peak_bytes=peak + planned)

    report(
        Case(
            "network_memory",
            f"{net.about} batch {batch}, forward of {contender}",
            {contender: lambda: forward(x, labels)},
            check,
            x,
            floor=False,
        ),
        contender,
    )

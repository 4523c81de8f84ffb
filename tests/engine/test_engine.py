"""The CPU engine: the same numbers as the network it replaces, made by its own calls, and out of the way elsewhere."""

import copy
import io
import resource
import threading
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore
from fastscore import models
from fastscore.engine import Engine, Program, layers
from fastscore.engine.writer import copying
from fastscore.testing.networks import disturb

pytestmark = pytest.mark.skipif(fastscore._library.NATIVE is None, reason="the engine's ops are native")


class Ops(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.removeprefix("fastscore::")] += 1
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """A residual block with a time embedding, as score networks have it."""

    def __init__(self, channels: int, outputs: int, embedding: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, channels), nn.GroupNorm(4, outputs)
        self.conv1, self.conv2 = (nn.Conv2d(n, outputs, 3, padding=1) for n in (channels, outputs))
        self.time = nn.Linear(embedding, outputs)
        self.shortcut = nn.Conv2d(channels, outputs, 1)

    def forward(self, x, embedding):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (h + self.shortcut(x)) / 2**0.5


class Net(nn.Module):
    """Two levels, a concatenation, attention, and both ways of resampling."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.time = nn.Linear(1, 32)
        self.down, self.middle, self.up = Block(width, width, 32), Block(width, 24, 32), Block(24 + width, width, 32)
        self.smaller = nn.Conv2d(width, width, 3, stride=2)
        self.larger = nn.Conv2d(24, 24, 3, padding=1)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.norm, self.last = nn.GroupNorm(4, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x, t):
        e = self.time(t[:, None])
        skip = self.down(self.first(x), e)
        h = self.middle(self.smaller(F.pad(skip, (0, 1, 0, 1))), e)
        rows = h.flatten(2).transpose(1, 2)
        q, k, v = (layer(rows)[:, None] for layer in (self.q, self.k, self.v))
        rows = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        h = h + rows.transpose(1, 2).reshape(h.shape)
        h = self.larger(F.interpolate(h, scale_factor=2.0))
        h = self.up(torch.cat([h, skip], 1), e)
        return self.last(F.silu(self.norm(h)))


def arguments(size: int = 16, batch: int = 2, channels: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, size, size, generator=generator), torch.tensor([0.3, 0.6, 0.9])[:batch]


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def fast(model: nn.Module, *args: object) -> tuple[nn.Module, Program]:
    """A copy under the engine, and its program for the arguments."""
    other = copy.deepcopy(model)
    report = fastscore.accelerate(other, optimize="cpu", example=args)
    assert not report.engine.refusals, report.engine.refusals
    (program,) = report.engine.programs.values()
    return other, program


def assert_same(model: nn.Module, *args: torch.Tensor) -> Program:
    """Within twice (three times: Winograd) the error that the network itself makes against float64."""
    with torch.no_grad():
        plain = model(*args)
        exact = copy.deepcopy(model).double()(*(a.double() if a.is_floating_point() else a for a in args))
        other, program = fast(model, *args)
        with Ops() as ops:
            got = other(*args)
    assert ops.counts["conv_gemm_into"], ops.counts  # it was the engine
    assert not ops.counts["convolution"]
    assert got.shape == plain.shape
    assert got.stride() == plain.stride()
    size = exact.abs().max()
    ours, theirs = ((value.double() - exact).abs().max() / size for value in (got, plain))
    assert ours <= max(3 * theirs, 1e-6), (ours, theirs)
    return program


def small(name: str, width: dict[str, int]) -> nn.Module:
    import dataclasses

    torch.manual_seed(0)
    network = models.create(dataclasses.replace(models.describe(name).config, **width)).eval()
    disturb(network)
    return network


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_network_of_torch(batch):
    program = assert_same(net(), *arguments(batch=batch))
    calls = Counter(program.calls)
    assert calls["attention"] == 1
    assert calls["group_affine"] == 7
    assert calls["copy"] == 0  # the concatenation is where its sources are written
    assert not program.unfused


@pytest.mark.parametrize(("least", "taken"), [(0, 5), (1 << 30, 0)])
def test_norms_take_the_statistics_of_the_convolutions_before_them(least, taken, monkeypatch):
    """Of one, and of all that lie in a concatenation."""
    monkeypatch.setattr(layers, "LARGE", least)
    program = assert_same(net(), *arguments())
    norms = [call for call in program._late if call.name == "group_affine"]
    assert len(norms) == 7
    strips = [call.args[7] for call in norms if call.args[7] is not None]
    assert len(strips) == taken


def test_sizes_that_no_tile_divides():
    model = nn.Sequential(nn.Conv2d(3, 17, 3, padding=1), nn.GroupNorm(1, 17), nn.SiLU(), nn.Conv2d(17, 9, 1)).eval()
    assert_same(model, torch.randn(2, 3, 13, 7))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("ncsnpp-cifar10", {"nf": 16, "num_res_blocks": 1}),
        ("ddpmpp-cifar10-continuous", {"nf": 16, "num_res_blocks": 1}),
        ("ddpm-cifar10", {"nf": 32, "num_res_blocks": 1}),
        ("ddim-cifar10", {"ch": 32, "num_res_blocks": 1}),
        ("ncsnv2-cifar10", {"nf": 8}),
    ],
)
def test_our_networks(name, width):
    x, _ = arguments(32)
    program = assert_same(small(name, width), x, torch.tensor([3, 6]) if "ncsnv2" in name else torch.tensor([3.0, 6.0]))
    if "ncsnv2" not in name:
        assert not [
            call.name for call in program._late if call.function is copying
        ]  # operators with results of their own


def test_the_time_embedding_is_computed_when_the_time_changes():
    model, (x, t) = net(), arguments()
    other, _ = fast(model, x, t)
    counts = []
    with torch.no_grad():
        other(x, t)
        for time in (t, t.clone(), t + 0.1, t + 0.1):
            with Ops() as ops:
                got = other(x, time)
            counts.append(ops.counts["conv_gemm_into"])
            torch.testing.assert_close(got, model(x, time), rtol=1e-5, atol=1e-5)
    assert counts[0] == counts[1] == counts[3] < counts[2]


def test_an_interrupted_call_leaves_no_old_time_embedding():
    model, (x, t) = net(), arguments()
    other, program = fast(model, x, t)

    def interrupt() -> None:
        program._bound_early.remove(interrupted)
        raise KeyboardInterrupt

    interrupted = (interrupt, (), {})
    with torch.no_grad():
        other(x, t)
        program._bound_early.insert(0, interrupted)
        with pytest.raises(KeyboardInterrupt):
            other(x, t + 0.1)
        torch.testing.assert_close(other(x, t + 0.1), model(x, t + 0.1), rtol=1e-5, atol=1e-5)


def test_it_reads_no_memory_that_it_has_not_written():
    other, program = fast(net(), *arguments())
    with torch.no_grad():
        want = other(*arguments())
        program._arena.fill_(255)  # NaN
        program._fresh = True
        assert torch.equal(other(*arguments()), want)


def test_changed_weights_are_followed():
    model, args = net(), arguments()
    other, program = fast(model, *args)

    def assert_equal() -> None:
        with torch.no_grad():
            want = model(*args)
            torch.testing.assert_close(other(*args), want, rtol=0, atol=1e-5 * float(want.abs().max()))

    assert_equal()
    with torch.no_grad():
        for m in (model, other):
            m.down.conv1.weight.mul_(2)
            m.q.bias.add_(1)
    assert_equal()
    for m in (model, other):
        m.last.weight = nn.Parameter(torch.linspace(-1, 1, m.last.weight.numel()).reshape(m.last.weight.shape))
    assert_equal()
    state = {name: value + 0.01 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    other.load_state_dict(state)
    assert_equal()
    assert list(other._fused_engine.programs.values()) == [program]


def test_weights_in_another_format_make_another_program():
    model, args = net(), arguments()
    other, program = fast(model, *args)
    other.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert _ran(other, *args)
        want = model(*args)
        torch.testing.assert_close(other(*args), want, rtol=0, atol=1e-5 * float(want.abs().max()))
        assert list(other._fused_engine.programs.values()) != [program]
        wide = [a.double() for a in args]
        assert not _ran(other.double(), *wide)
        torch.testing.assert_close(other(*wide).float(), want, rtol=0, atol=1e-5 * float(want.abs().max()))


def _ran(other: nn.Module, *args: torch.Tensor) -> bool:
    with Ops() as ops:
        other(*args)
    return ops.counts["conv_gemm_into"] > 0


def test_what_it_leaves_to_the_layers():
    model, (x, t) = net(), arguments()
    other, _ = fast(model, x, t)
    with torch.no_grad():
        assert _ran(other, x, t)
        other.train()
        assert not _ran(other, x, t)
        other.eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert not _ran(other, x, t)
        with fastscore.backend("reference"):
            assert not _ran(other, x, t)
        with fastscore.backend("cpu"):
            assert _ran(other, x, t)
        handle = other.down.conv1.register_forward_hook(lambda *_: None)
        assert not _ran(other, x, t)
        handle.remove()
        assert _ran(other, x, t)
    assert not _ran(other, x, t)  # gradients of the parameters
    with torch.inference_mode():
        assert _ran(other, x, t)
        back = [torch.func.vjp(lambda x, m=m: m(x, t), x)[1](x)[0] for m in (other, model)]
    torch.testing.assert_close(*back, rtol=1e-4, atol=1e-4 * float(back[1].abs().max()))


def test_gradients_are_those_of_the_network():
    model, (x, t) = net(), arguments()
    other, _ = fast(model, x, t)
    gradients = []
    for m in (model, other):
        x = x.detach().clone().requires_grad_()
        out = m(x, t)
        assert out.is_contiguous()
        out.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in m.parameters())])
    largest = max(float(want.abs().max()) for want in gradients[0])  # some are nothing but rounding errors
    for got, want in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * largest)


def test_other_shapes_get_other_programs_and_a_lasting_one_takes_the_place_of_the_oldest():
    model = net()
    other, first = fast(model, *arguments())
    programs = other._fused_engine.programs
    with torch.no_grad():
        for size in (8, 12, 20):
            x, t = arguments(size)
            torch.testing.assert_close(other(x, t), model(x, t), rtol=1e-5, atol=1e-5)
        assert len(programs) == 4
        x, t = arguments(24)
        ran = [_ran(other, x, t) for _ in range(9)]
    assert ran == [False] * 7 + [True] * 2
    assert len(programs) == 4
    assert first not in programs.values()


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "rk45"])
def test_samplers_draw_the_same(name):
    model = small("ddpm-cifar10", {"nf": 32, "num_res_blocks": 1})
    other = copy.deepcopy(model)
    fastscore.accelerate(other, optimize="cpu")
    options = {"rtol": 1e-2, "atol": 1e-2} if name == "rk45" else {"steps": 5}
    sde = fastscore.VPSDE()
    want, got = (fastscore.sampler(name, sde, m, **options).sample((2, 3, 32, 32), seed=0) for m in (model, other))
    assert other._fused_engine.programs
    assert (got - want).norm() <= 1e-4 * want.norm()


def test_two_threads_at_once():
    model, (x, t) = net(), arguments()
    other, _ = fast(model, x, t)
    with torch.no_grad():
        want = other(x, t)
    wrong = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(other(x, t), want, rtol=1e-5, atol=1e-5):
                    wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


def test_a_network_that_cannot_be_traced_runs_as_before():
    model = Branching().eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        want = model(x)
    report = fastscore.accelerate(model, optimize="cpu", example=x)
    assert "none, torch.export: " in str(report)
    with torch.no_grad():
        torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def test_copies_pickles_restored():
    stock, args = net(), arguments()
    model, _ = fast(stock, *args)
    assert list(model.state_dict()) == list(stock.state_dict())
    other = copy.deepcopy(model)
    assert isinstance(other._fused_engine, Engine)
    assert not other._fused_engine.programs
    with torch.no_grad():
        other.last.weight.zero_()
        other.last.bias.zero_()
        assert not other(*args).any()
        assert model(*args).any()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(*args), model(*args))
    fastscore.restore(model)
    assert type(model) is Net
    assert type(model.first) is nn.Conv2d
    assert not any(name.startswith("_fused") for name in vars(model))


def test_accelerating_again_keeps_the_engine():
    model, program = fast(net(), *arguments())
    report = fastscore.accelerate(model)
    assert list(report.engine.programs.values()) == [program]
    assert report.counts["conv3x3"] == 9


def test_verify_compares_what_the_engine_computes(monkeypatch):
    model = net()
    fastscore.accelerate(model, optimize="cpu", verify=True, example=arguments())
    assert model._fused_engine.programs
    fastscore.restore(model)
    run = Program.run
    monkeypatch.setattr(Program, "run", lambda self, leaves: run(self, leaves) * 1.001)
    with pytest.raises(RuntimeError, match="output 0 without gradients has error"):
        fastscore.accelerate(model, optimize="cpu", verify=True, example=arguments())
    assert type(model) is Net


def test_bad_arguments():
    with pytest.raises(ValueError, match="optimize must be None or 'cpu', got 'gpu'"):
        fastscore.accelerate(net(), optimize="gpu")
    with pytest.raises(ValueError, match="example is for"):
        fastscore.accelerate(net(), example=arguments())


def test_the_second_forward_takes_no_memory_from_the_system():
    torch.manual_seed(0)
    model, args = Net(64).eval(), arguments(64)
    other, program = fast(model, *args)
    assert program.arena_bytes > 2 << 20
    with torch.no_grad():
        for _ in range(2):
            other(*args)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            other(*args)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults * resource.getpagesize() < program.arena_bytes // 20, faults

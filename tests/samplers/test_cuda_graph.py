"""Steps as a CUDA graph: what is captured, what changes between replays, and what is refused.

There is no CUDA graph without a GPU. A stand-in captures as CUDA does: it keeps the operators that a block called and
the memory that they were called on, takes back what they did, and does the same on the same memory at every replay. So
a coefficient, a label or a tensor that the host had put into the graph would stay what it was.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastscore
from fastscore import VESDE, VPSDE, Convention, PhiloxNoise, TorchNoise
from fastscore.samplers import Hook, cuda_graph
from fastscore.samplers.base import Sampler
from fastscore.samplers.cuda_graph import find_blocks
from fastscore.samplers.hooks import Hooks

FIXED = [name for name in fastscore.samplers.names() if fastscore.samplers.describe(name).calls != "adaptive"]
NEEDED: dict[str, dict[str, Any]] = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}
MEMORY: set[str] = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Recorder(TorchDispatchMode):
    """Keeps every call with its arguments and results, and the contents that memory had before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                whole = torch.as_strided(
                    tensor.detach(), (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0
                )
                self.before.setdefault(tensor.untyped_storage()._cdata, (whole, whole.clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def take_back(self) -> None:
        for memory, content in self.before.values():
            memory.copy_(content)

    def replay(self) -> None:
        """The same on the same memory; results go to where they were."""
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            if func._schema.name.split("::")[1] in MEMORY:
                continue
            for old, value in zip(tree_leaves(out), tree_leaves(new), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != value.data_ptr():
                    old.copy_(value)


class Stream:
    """Counts captures and replays."""

    def __init__(self) -> None:
        self.captured = self.replayed = self.aside = 0

    def capture(self, block: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        with Recorder() as recorder:
            block()
        recorder.take_back()

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay

    def run_aside(self, block: Callable[[], None]) -> None:
        self.aside += 1
        block()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stand_in = Stream()
    monkeypatch.setattr(cuda_graph, "capture", stand_in.capture)
    monkeypatch.setattr(cuda_graph, "aside", stand_in.run_aside)
    monkeypatch.setattr(Sampler, "_check_graph", lambda *_: None)
    return stand_in


def network(x: Tensor, label: Tensor) -> Tensor:
    return torch.tanh(x) * (1 + label.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype) / 7)


def make(name: str, sde: fastscore.SDE, **options: Any) -> Any:
    convention = Convention("denoised" if name == "consistency" else "noise")
    return fastscore.sampler(name, sde, network, **{"convention": convention, **NEEDED.get(name, {}), **options})


@pytest.mark.parametrize("name", [name for name in FIXED if name != "consistency"])
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 10.0)], ids=["vp", "ve"])
def test_replays_give_the_numbers_of_the_loop(name: str, sde: fastscore.SDE, stream: Stream) -> None:
    sampler, plain = make(name, sde, steps=31), make(name, sde, steps=31)
    for seed, batch in ((0, 3), (5, 3), (6, 2)):  # another seed, and another shape
        want = plain.sample((batch, 2, 3, 4), seed=seed)
        assert torch.equal(sampler.sample((batch, 2, 3, 4), seed=seed, cuda_graph=True), want)
    assert (stream.captured, stream.aside) == (2, 2)
    assert stream.replayed >= 3 * 2  # in every run, most blocks


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {"clip": 1.0}),
        ("pc", {"clip": 0.5, "corrector_steps": 2, "norm": "sample"}),
        ("dpmpp-2m", {"clip": 1.0}),
        ("edm", {}),
        ("lms", {}),
    ],
)
@pytest.mark.parametrize("prediction", ["noise", "denoised", "v", "edm"])
def test_replays_with_conversions(name: str, options: dict[str, Any], prediction: str, stream: Stream) -> None:
    convention = Convention(prediction, "log_sigma" if prediction == "edm" else "time")
    samplers = [make(name, VPSDE(), steps=24, convention=convention, **options) for _ in range(2)]
    want = samplers[0].sample((2, 3, 4, 4))
    assert torch.equal(samplers[1].sample((2, 3, 4, 4), cuda_graph=True), want)
    assert stream.replayed > 1


def test_samples_and_precision(stream: Stream) -> None:
    sampler, plain = make("pc", VPSDE(), steps=30), make("pc", VPSDE(), steps=30)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for samples in ([4, 7], [9, 1]):
            noise = PhiloxNoise(3, samples=samples)
            want = plain.sample((2, 3, 4), noise=noise, dtype=dtype)
            assert torch.equal(sampler.sample((2, 3, 4), noise=noise, dtype=dtype, cuda_graph=True), want)


def test_another_model_is_captured_anew(stream: Stream) -> None:
    sampler = make("ddim", VPSDE(), steps=10)
    before = sampler.sample((2, 3), cuda_graph=True)
    sampler.model = lambda x, t: -network(x, t)
    after = sampler.sample((2, 3), cuda_graph=True)
    assert not torch.equal(before, after)
    assert torch.equal(after, sampler.sample((2, 3)))
    assert stream.captured == 2


def test_a_graph_serves_every_further_run(stream: Stream) -> None:
    sampler = make("euler-maruyama", VPSDE(), steps=50)
    for seed in range(3):
        sampler.sample((2, 3), seed=seed, cuda_graph=True)
    assert stream.captured == 1
    latent = torch.randn(2, 3)
    kept = latent.clone()
    result = sampler.sample(latent, seed=9, cuda_graph=True)
    assert torch.equal(result, sampler.sample(latent, seed=9))
    assert torch.equal(latent, kept)
    again = result.clone()
    sampler.sample((2, 3), cuda_graph=True)
    assert torch.equal(result, again)  # not the graph's own memory


def test_progress_counts_blocks(stream: Stream, capsys: pytest.CaptureFixture[str]) -> None:
    make("pc", VPSDE(), steps=30).sample((2, 3), cuda_graph=True, progress=True)
    assert "30/30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "rows", "copies"),
    [
        ("euler-maruyama", 1, False),
        ("pc", 2, False),
        ("ode-heun", 2, False),
        ("ode-rk4", 4, False),
        ("lms", 4, True),
        ("dpmpp-2m", 2, False),
    ],
)
def test_a_block_is_the_least_that_repeats(name: str, rows: int, copies: bool, stream: Stream) -> None:
    sampler = make(name, VPSDE(), steps=40)
    sampler.sample((2, 3), cuda_graph=True)
    ((_, graph),) = sampler._graphs.items()
    assert (graph.blocks.rows, graph.blocks.copies) == (rows, copies)
    plan = sampler.plan()
    assert graph.blocks.rows * graph.blocks.count > 0.7 * len(plan.steps)
    assert find_blocks(plan.steps[:2], graph._here.rows[:1] * 2, plan.memory) is None


# ------------------------------------------------------------------------------------------------ what is refused


def test_without_cuda_it_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"PCSampler: cuda_graph=True needs a state on a CUDA device, got one on cpu"):
        make("pc", VPSDE(), steps=30).sample((2, 3), cuda_graph=True)


def test_adaptive_samplers_have_no_graph() -> None:
    with pytest.raises(ValueError, match="RK45Sampler: cuda_graph must be False, as this sampler chooses its steps"):
        make("rk45", VPSDE()).sample((2, 3), cuda_graph=True)


class Look(Hook):
    def after_step(self, x: Tensor, moment: Any) -> None:
        pass


class Cuda:
    """A state on a device that is not there, as far as the check looks."""

    device = torch.device("cuda")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise": TorchNoise()}, "needs counter-based noise, PhiloxNoise, got TorchNoise"),
        ({"hooks": [Look()]}, "hooks cannot be used with cuda_graph=True"),
        ({"callback": print}, "callback cannot be used with"),
        ({"check_finite": True}, "check_finite cannot be used with"),
    ],
)
def test_what_needs_the_host_is_refused(changed: dict[str, Any], message: str) -> None:
    given = {"noise": PhiloxNoise(0), "hooks": (), "check_finite": False, "callback": None, **changed}
    with pytest.raises(ValueError, match=message):
        make("pc", VPSDE(), steps=30)._check_graph(
            Cuda(), given["noise"], Hooks(given["hooks"]), given["check_finite"], given["callback"]
        )


def test_too_few_steps_are_an_error(stream: Stream) -> None:
    with pytest.raises(ValueError, match="a plan of 2 rows has no 3 blocks that are alike; take more"):
        make("ode-euler", VPSDE(), steps=2).sample((2, 3), cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["pc", "ddim", "dpmpp-2m", "lms", "ode-heun"])
def test_on_a_gpu(name: str) -> None:
    sampler = make(name, VPSDE(), steps=30)
    want = sampler.sample((4, 3, 8, 8), device="cuda")
    for _ in range(2):
        assert torch.equal(sampler.sample((4, 3, 8, 8), device="cuda", cuda_graph=True), want)

"""What torch.compile makes of the ops on CUDA tensors, traced on tensors without memory, for a GPU that is not here."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch._subclasses.fake_tensor import FakeTensorMode

from fastscore import _backend, _library
from fastscore.testing.fake_cuda import can_compile_fake_cuda
from fastscore.testing.linear_step import make_case as linear_case
from fastscore.testing.solver_step import make_case as solver_case

pytestmark = [
    pytest.mark.skipif(not _library.TRITON or _backend.INTERPRETED, reason="needs triton, and not its interpreter"),
    pytest.mark.skipif(not can_compile_fake_cuda(), reason="torch cannot compile for fake CUDA tensors here"),
]
SHAPE = (4, 3, 8, 8)
LAYOUTS = ("contiguous", "channels_last", "permuted")


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's: what a kernel writes is read off its code, which Triton makes for a GPU of the driver."""
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    torch._dynamo.reset()


def faked(arguments: Any, device: str = "cuda") -> Any:
    """Tensors like the arguments without memory, in a FakeTensorMode."""
    return torch.utils._pytree.tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device), arguments
    )


def traced(function: Callable[..., Any], arguments: Any, dynamic: bool = False, device: str = "cuda") -> fx.Graph:
    """The graph that a compiler gets for a function of tensors like the arguments."""
    graphs: list[fx.Graph] = []

    def compiler(module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(module.graph)
        return module.forward

    with FakeTensorMode():
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=aot_autograd(fw_compiler=compiler))
        compiled(*faked(arguments, device))
    (graph,) = graphs
    return graph


def kernels(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that start Triton kernels; no op of ours is left, and none of the tensors given is lost."""
    assert not [node for node in graph.nodes if "fastscore" in str(node.target)]
    unused = [node for node in graph.nodes if node.op == "placeholder" and not node.users]
    assert not [node for node in unused if isinstance(node.meta["val"], Tensor)]
    return [node for node in graph.nodes if node.target is triton_kernel_wrapper_functional]


OPS = _library.OVERLOADS["triton"]


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("terms", [0, 6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_linear_step_is_seen_as_one_kernel(layout: str, terms: int, noise: str) -> None:
    x, history, rows, keywords = linear_case(SHAPE, layout=layout, terms=terms, noise=noise)
    rest = history, rows, *(keywords.get(name) for name in ("noise", "rng", "samples"))
    (kernel,) = kernels(traced(OPS["linear_step"], (x, *rest)))
    assert kernel.kwargs["tensors_to_clone"] == ["out"]
    given = kernel.kwargs["kwargs"]
    elements = 192 if noise == "drawn" else 768  # without, the batch is one sample
    assert (given["pixels"] * given["channels"], given["count"]) == (elements, terms)


@pytest.mark.parametrize("backend", [None, "triton"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_loop_in_place_is_seen_as_its_kernels(dynamic: bool, backend: str | None) -> None:
    if backend is None and "linear_step_" in _library.OVERLOADS["cuda"]:
        pytest.skip("CUDA C++ runs this op here, and stays an op")
    x, history, rows, keywords = linear_case(SHAPE, terms=2)
    step = _library.OVERLOADS[backend]["linear_step_"]

    def loop(x: Tensor, history: list[Tensor], rows: Tensor, rng: Tensor, samples: Tensor) -> Tensor:
        x = torch.sin(x)
        for _ in range(3):
            step(x, [*history[:1], x], rows, None, rng, samples)
        return x

    graph = traced(loop, (x, history[:1], rows, keywords["rng"], keywords["samples"]), dynamic)
    found = kernels(graph)
    assert [node.kwargs["tensors_to_clone"] for node in found] == [["out"]] * 3
    for before, after in itertools.pairwise(found):  # each reads what the one before wrote
        read = after.kwargs["kwargs"]
        assert read["out"] is read["x"] is read["h1"]
        assert (read["x"].args[0], read["x"].args[1]) == (before, "out")


@pytest.mark.parametrize("terms", [0, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_solver_step_is_seen_as_one_kernel(in_place: bool, terms: int) -> None:
    x, h, history, rows, keywords = solver_case(SHAPE, terms=terms)
    rest = rows, keywords["exponent"], None, keywords["rng"], keywords["samples"]

    def run(x: Tensor, m: Tensor, *arguments: Any) -> Any:
        if not in_place:
            return OPS["solver_step"](x, *arguments)
        x = x * 1
        OPS["solver_step_"](x, *arguments, m=m)
        return x

    (kernel,) = kernels(traced(run, (x, x.clone() if in_place else None, h, history, *rest)))
    assert sorted(kernel.kwargs["tensors_to_clone"]) == ["kept", "out"]
    assert kernel.kwargs["kwargs"]["count"] == terms


def test_on_the_host_and_in_exported_programs_it_stays_an_op() -> None:
    x, history, rows, keywords = linear_case(SHAPE)

    class Step(torch.nn.Module):
        def forward(self, x: Tensor, history: list[Tensor], rows: Tensor, rng: Tensor, samples: Tensor) -> Tensor:
            return OPS["linear_step"](x, history, rows, None, rng, samples)

    arguments = x, history, rows, keywords["rng"], keywords["samples"]
    with FakeTensorMode():
        exported = torch.export.export(Step(), faked(arguments)).run_decompositions({})
    for graph in exported.graph, traced(Step(), arguments, device="cpu"):
        called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert called == ["fastscore_triton.linear_step.default"]

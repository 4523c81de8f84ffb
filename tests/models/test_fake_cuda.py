"""Score networks on CUDA tensors that have no memory: no tensor on another device, no graph break, no unknown op."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map_only

from fastscore.models import create
from fastscore.testing.fake_cuda import Devices, can_compile_fake_cuda, can_index_fake_cuda

pytestmark = pytest.mark.skipif(
    not can_index_fake_cuda(), reason="this torch needs a driver to index fake CUDA tensors"
)
SMALL = {"image_size": 8, "num_channels": 2, "nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}
CONFIGS = {
    "ncsnpp": {"progressive": "output_skip", "progressive_input": "residual", "progressive_combine": "sum"},
    "ddpmpp": {
        **{"fir": False, "progressive": "none", "progressive_input": "none", "resblock_type": "biggan"},
        **{"embedding_type": "positional", "scale_by_sigma": False, "centered": True},
    },
}
OPS = {"fastscore::group_norm_silu_fwd", "fastscore::attention_fwd"}


def made(name: str, device: str) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A network on a device and its input, in a FakeTensorMode."""
    with torch.device(device):
        return create({**SMALL, "dropout": 0.0, **CONFIGS[name]}), torch.empty(4, 2, 8, 8), torch.empty(4)


def assert_ours_ran(devices: Devices, name: str, *more: str) -> None:
    resample = {"fastscore::resample"} if name == "ncsnpp" else set()
    assert {op for op in devices.called if op.startswith("fastscore::")} == OPS | resample | set(more)


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_and_its_tangent(name: str) -> None:
    devices = Devices()
    with FakeTensorMode(), devices:
        network, x, labels = made(name, "cuda")
        out = network(x, labels)
        assert_ours_ran(devices, name)
        value, tangent = torch.func.jvp(lambda x: network(x, labels), (x,), (torch.empty_like(x),))
    for result in (out, value, tangent):
        assert (result.device.type, result.shape, result.dtype) == ("cuda", x.shape, torch.float32)
    assert_ours_ran(devices, name, "fastscore::group_norm_silu_jvp", "fastscore::attention_jvp")


@pytest.mark.skipif(not can_compile_fake_cuda(), reason="torch cannot compile for fake CUDA tensors here")
@pytest.mark.parametrize("name", ["ncsnpp", pytest.param("ddpmpp", marks=pytest.mark.slow)])
def test_compiles_to_one_graph_of_cuda_tensors(name: str) -> None:
    torch._dynamo.reset()
    graphs: list[fx.Graph] = []

    def compiler(module: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(module.graph)
        return module.forward

    with FakeTensorMode(), torch.no_grad():
        network, x, labels = made(name, "cuda")
        out = torch.compile(network, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))(x, labels)
    assert (out.device.type, out.shape) == ("cuda", x.shape)
    (graph,) = graphs
    tensors = [node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert len(tensors) > 100
    assert {tensor.device.type for tensor in tensors if tensor.numel() > 1} == {"cuda"}


@pytest.mark.parametrize("name", CONFIGS)
def test_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward is traced on the host and run on CUDA tensors: torch's autograd engine asks for a driver."""
    attention = importlib.import_module("fastscore.ops.attention")  # the module, not its function
    monkeypatch.setattr(attention, "_torch_is_better", lambda *_: False)  # as on a GPU in float32
    convolution = importlib.import_module("fastscore.ops.conv3x3")
    monkeypatch.setattr(convolution, "_chosen", lambda *_: "direct")  # likewise
    with FakeTensorMode() as mode:
        network, x, labels = made(name, "cpu")
        parameters = {key: p for key, p in network.named_parameters() if p.requires_grad}
        frozen = {key: t for key, t in [*network.named_parameters(), *network.named_buffers()] if key not in parameters}

        def gradients(parameters: dict[str, Tensor], frozen: dict[str, Tensor], x: Tensor, labels: Tensor) -> Any:
            leaves = {key: p.detach().requires_grad_() for key, p in parameters.items()}
            out = torch.func.functional_call(network, leaves | frozen, (x, labels))
            return torch.autograd.grad(out.square().sum(), list(leaves.values()))

        inputs = {key: p.detach() for key, p in parameters.items()}, frozen, x, labels
        traced = make_fx(gradients)(*inputs)
        for node in traced.graph.nodes:
            node.kwargs = tree_map_only(torch.device, lambda device: torch.device("cuda"), node.kwargs)
        traced.recompile()
    devices = Devices()
    with mode, devices:
        cuda = tree_map_only(
            Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"), inputs
        )
        found = traced(*cuda)
    for gradient, parameter in zip(found, parameters.values(), strict=True):
        assert (gradient.device.type, gradient.shape) == ("cuda", parameter.shape)
    assert_ours_ran(devices, name, "fastscore::group_norm_silu_bwd", "fastscore::attention_bwd")

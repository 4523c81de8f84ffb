"""A network under other runtimes: eager PyTorch in both memory formats, torch.compile, OpenVINO and ONNX Runtime.

All in float32, with as many threads as torch has, for one batch size, as fast as their documentation says how: frozen
weights for torch.compile, the hint LATENCY for OpenVINO, all graph optimizations for ONNX Runtime.
"""

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from fastscore.testing.avx2_only import avx2_only

Forward = Callable[[Tensor, Tensor], Tensor]
"""x and labels, contiguous and of the shapes that it was made for -> the output."""

_NEEDS = {"OpenVINO": ("openvino",), "ONNX Runtime": ("onnxruntime", "onnxscript")}


def why_not(name: str) -> str | None:
    """What a runtime lacks on this machine; None if it runs."""
    missing = [module for module in _NEEDS.get(name, ()) if importlib.util.find_spec(module) is None]
    return f"{name} needs {' and '.join(missing)}: pip install fastscore[bench]" if missing else None


def without_gradients(function: Forward) -> Forward:
    """The same under `torch.no_grad`."""

    def run(x: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x, labels)

    return run


def eager(network: nn.Module, x: Tensor, labels: Tensor) -> Forward:
    """PyTorch, contiguous."""
    return without_gradients(network)


def channels_last(network: nn.Module, x: Tensor, labels: Tensor) -> Forward:
    """PyTorch with weights and images in channels-last."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return without_gradients(lambda x, labels: network(x.contiguous(memory_format=torch.channels_last), labels))


def compiled(network: nn.Module, x: Tensor, labels: Tensor) -> Forward:
    """torch.compile with frozen weights, which then lays them out for its convolutions."""
    torch._dynamo.reset()  # of one code it keeps eight versions at most
    return without_gradients(torch.compile(copy.deepcopy(network), dynamic=False, options={"freezing": True}))


def openvino(network: nn.Module, x: Tensor, labels: Tensor) -> Forward:
    """OpenVINO of the traced network."""
    import openvino

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of tracing: shapes are constants
        shapes = [tuple(x.shape), tuple(labels.shape)]
        model = openvino.convert_model(network, example_input=(x, labels), input=shapes)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(x: Tensor, labels: Tensor) -> Tensor:
        given = [x.numpy(), labels.numpy()]
        return torch.from_numpy(request.infer(given, share_inputs=True, share_outputs=True)[0])

    return run


def onnx_runtime(network: nn.Module, x: Tensor, labels: Tensor) -> Forward:
    """ONNX Runtime of the exported network, for AVX2 where torch is held to it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (x, labels), dynamo=True, verbose=False)
    assert program is not None
    graph = program.model_proto.SerializeToString()
    held = torch.backends.cpu.get_cpu_capability() == "AVX2"
    with avx2_only() if held else nullcontext():  # it looks at the processor when it is loaded
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")  # the next contender has the cores
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(x: Tensor, labels: Tensor) -> Tensor:
        given = dict(zip(names, (x.numpy(), labels.numpy()), strict=True))
        return torch.from_numpy(session.run(None, given)[0])

    return run


RUNTIMES: dict[str, Callable[[nn.Module, Tensor, Tensor], Forward]] = {
    "eager": eager,
    "eager, channels last": channels_last,
    "torch.compile": compiled,
    "OpenVINO": openvino,
    "ONNX Runtime": onnx_runtime,
}

"""What tests of accelerated networks share: is it the same network, and did the fused ops compute it?"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastscore
from fastscore.accelerate import Report
from fastscore.testing.networks import disturb


class FusedOps(TorchDispatchMode):
    """Counts the launches of this library's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastscore":
            self.counts[func._schema.name.removeprefix("fastscore::")] += 1
        return func(*args, **(kwargs or {}))


def run(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    """Output, gradients of the floating-point arguments and of all parameters, for one direction of the output."""
    torch.manual_seed(1)  # dropout
    inputs = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
    model.zero_grad()
    out = model(*inputs)
    out = out if isinstance(out, Tensor) else out[0]
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().reshape(out.shape)
    (out * weights.to(out.dtype)).sum().backward()
    results = {"output": out.detach()}
    results |= {f"gradient of argument {i}": a.grad for i, a in enumerate(inputs) if a.grad is not None}
    results |= {f"gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return results


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], output: float, gradient: float) -> None:
    """Errors relative to the largest value; of gradients, to the largest one of all parameters or of all arguments."""
    assert got.keys() == want.keys()
    largest = max(want[name].abs().max().item() for name in want if name != "output")
    for name, value in want.items():
        assert got[name].dtype == value.dtype, name
        assert got[name].shape == value.shape, name
        size, tolerance = (value.abs().max().item(), output) if name == "output" else (largest, gradient)
        error = (got[name] - value).abs().max().item()
        assert error <= tolerance * size, f"{name}: {error:.2e} of {size:.2e}"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Layers are made with torch's generator."""
    torch.manual_seed(0)


def assert_engine_agrees(model: nn.Module, arguments: tuple[Any, ...]) -> None:
    """In evaluation mode and without gradients, the whole model as one program gives the same, 1e-5 of the largest."""
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        want = model(*arguments)
        report = fastscore.accelerate(model, optimize="cpu", example=arguments)
        assert report.engine is not None
        assert not report.engine.refusals, report.engine.refusals
        (program,) = report.engine.programs.values()
        got = program.run(arguments)
    (got, want) = (out if isinstance(out, Tensor) else out[0] for out in (got, want))
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.fixture
def same() -> Callable[..., Report]:
    """`same(model, arguments, ops)`: accelerated, the model is the same, runs these ops, and comes back as it was.

    In float64 a coefficient that is off in its tenth digit shows; in float32 it is what was promised.
    """

    def check(model: nn.Module, arguments: tuple[Any, ...], ops: dict[str, int]) -> Report:
        disturb(model)
        for dtype, tolerances in ((torch.float64, (1e-10, 1e-10)), (torch.float32, (1e-5, 1e-4))):
            model.to(dtype)
            inputs = tuple(a.to(dtype) if a.is_floating_point() else a for a in arguments)
            want = run(model, inputs)
            before = {name: (type(module), set(vars(module))) for name, module in model.named_modules()}
            keys = {name: value.data_ptr() for name, value in model.state_dict().items()}
            parameters = list(model.named_parameters())

            report = fastscore.accelerate(model)
            assert {name: value.data_ptr() for name, value in model.state_dict().items()} == keys
            assert all(a is b for (_, a), (_, b) in zip(model.named_parameters(), parameters, strict=True))
            # on CPU "auto" has attention computed by torch's fused kernel; this library's own shows that it was asked
            with FusedOps() as fused, fastscore.backend("cpu"), torch.no_grad():
                model(*inputs)
            assert fused.counts == ops
            got = run(model, inputs)
            assert_close(got, want, *tolerances)
            assert fastscore.accelerate(model) == report
            assert_close(run(copy.deepcopy(model), inputs), got, 0, 0)

            fastscore.restore(model)
            assert {name: (type(module), set(vars(module))) for name, module in model.named_modules()} == before
            assert_close(run(model, inputs), want, 0, 0)
        assert_engine_agrees(model, inputs)
        return report

    return check

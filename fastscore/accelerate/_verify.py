"""A model before and after a change: the same outputs, and the same gradients of its inputs?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Of outputs; gradients get ten times as much. In 16 bits a fused op rounds once where separate ops round several times.
_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def examples(model: nn.Module, example: object) -> Arguments:
    """Arguments for the model: those given, or random ones for a UNet2DModel of diffusers.

    Raises:
        ValueError: there are none, and what the model takes is not known.
    """
    if isinstance(example, Mapping):
        return (), dict(example)
    if example is not None:
        return (example if isinstance(example, tuple) else (example,)), {}
    config = getattr(model, "config", None)
    size, channels = (getattr(config, name, None) for name in ("sample_size", "in_channels"))
    if size is None or channels is None or "UNet2DModel" not in {cls.__name__ for cls in type(model).__mro__}:
        raise ValueError(
            f"accelerate: example must be given for verify=True: what {type(model).__name__} takes is not known"
        )
    weight = next(model.parameters())
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    image = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0)).to(weight)
    time = torch.ones(1, dtype=torch.long, device=weight.device)
    if getattr(model, "class_embedding", None) is None:
        return (image, time), {}
    return (image, time), {"class_labels": torch.zeros_like(time)}


def same(
    model: nn.Module, arguments: Arguments, change: Callable[[], T], undo: Callable[[], None], tolerance: float | None
) -> T:
    """Change the model, compare, and return what the change returned.

    Raises:
        RuntimeError: outputs or gradients differ by more than the tolerance; the change has been undone.
    """
    want = _run(model, arguments)
    try:
        result = change()
        got = _run(model, arguments)
        worst = [_compare(*pair, tolerance) for pair in zip(got, want, strict=True)]
    except BaseException:
        undo()
        raise
    if wrong := [line for line in worst if line is not None]:
        undo()
        raise RuntimeError(f"accelerate: the model is not the same; it has been restored: {'; '.join(wrong)}")
    return result


Results = list[tuple[str, Tensor]]


def _run(model: nn.Module, arguments: Arguments) -> Results:
    """Outputs, and the gradients of the inputs for random cotangents; without dropout, leaving the model as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    positional, named = arguments
    leaves: list[Tensor] = []
    inputs = [_leaf(value, leaves) for value in positional]
    keywords = {name: _leaf(value, leaves) for name, value in named.items()}
    devices = sorted({t.device.index or 0 for t in leaves if t.is_cuda})
    try:
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(0)
            outputs = list(_tensors(model(*inputs, **keywords)))
            directions = [torch.randn_like(out) for out in outputs]
            sums = [(out * along).sum() for out, along in zip(outputs, directions, strict=True) if out.requires_grad]
            gradients: Sequence[Tensor | None] = ()
            if sums and leaves:
                gradients = torch.autograd.grad(sums, leaves, allow_unused=True)
            with torch.no_grad():
                alone = list(_tensors(model(*positional, **named)))
    finally:
        for module, mode in training.items():
            module.training = mode
    results = [(f"output {i}", out.detach()) for i, out in enumerate(outputs)]
    results += [(f"output {i} without gradients", out) for i, out in enumerate(alone)]
    return results + [(f"gradient {i}", g) for i, g in enumerate(gradients) if g is not None]


def _leaf(value: Any, leaves: list[Tensor]) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    leaves.append(value.detach().clone().requires_grad_())
    return leaves[-1]


def _tensors(value: object) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _compare(got: tuple[str, Tensor], want: tuple[str, Tensor], tolerance: float | None) -> str | None:
    """What is wrong, or None."""
    (name, a), (_, b) = got, want
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{name} is {a.dtype} {tuple(a.shape)} in place of {b.dtype} {tuple(b.shape)}"
    allowed = (_TOLERANCE[b.dtype] if tolerance is None else tolerance) * (1 if name.startswith("output") else 10)
    error, size = ((t.double().abs().max().item() if t.numel() else 0.0) for t in (a.double() - b.double(), b))
    return None if error <= allowed * size else f"{name} has error {error:.1e}, {allowed * size:.1e} is allowed"

"""When an op has to go through its autograd.Function, what one in place copies then, and derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_function(*tensors: Tensor | None) -> bool:
    """Whether autograd, forward-mode derivatives or a functorch transform have to know of the call."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


_INPUTS_ONLY: ContextVar[bool] = ContextVar("inputs_only", default=False)


@contextmanager
def inputs_only() -> Iterator[None]:
    """A region in which nobody will ask for gradients of parameters (leaves that the input is not).

    An autograd.Function cannot know: it is told to give the gradient of every tensor that requires one.
    """
    token = _INPUTS_ONLY.set(True)
    try:
        yield
    finally:
        _INPUTS_ONLY.reset(token)


def wanted(parameter: Tensor) -> bool:
    """Whether a backward pass may be asked for the gradient of a parameter of an op; to be called in its forward."""
    return parameter.requires_grad and not (_INPUTS_ONLY.get() and parameter.is_leaf)


def copied(x: Tensor) -> Callable[[Any], Any]:
    """What gives a copy for x, made once, and for everything else the thing itself.

    For ops that overwrite x where backward may need it, also where it is an argument a second time.
    """
    copy = x.clone()
    return lambda argument: copy if argument is x else argument


def spread(values: Sequence[Tensor], places: Sequence[int], count: int) -> tuple[Tensor | None, ...]:
    """`values` at the places, None elsewhere."""
    result: list[Tensor | None] = [None] * count
    for k, value in zip(places, values, strict=True):
        result[k] = value
    return tuple(result)


def pullback(plain: Callable[..., Any], *points: Any) -> Callable[[Any], Any]:
    """The product of a vector with the Jacobian of `plain` at the points."""
    return torch.func.vjp(plain, *points)[1]


def directional(
    plain: Callable[..., tuple[Tensor, ...]], points: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Any:
    """Derivative of `plain` along `tangents`, by reverse mode twice: only in torch.func does forward mode nest."""
    outputs, back, *_ = torch.func.vjp(plain, *points)
    along = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(points, tangents, strict=True))
    return pullback(back, tuple(torch.zeros_like(out) for out in outputs))(along)[0]

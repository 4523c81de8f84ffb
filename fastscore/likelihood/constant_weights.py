"""Convolutions in forward mode, where their weights have no tangent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

__all__ = ["ConstantWeights"]

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class ConstantWeights(TorchFunctionMode):
    """While active, a tangent goes through a convolution by one convolution more.

    Torch's own rule makes two of it, of which the second, with the tangent of the weights, is one with zeros here.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    value, tangent = forward_ad.unpack_dual(input)
    constant = all(t is None or forward_ad.unpack_dual(t).tangent is None for t in (weight, bias))
    if tangent is None or not constant:
        return func(input, weight, bias, *args, **kwargs)
    return forward_ad.make_dual(
        func(value, weight, bias, *args, **kwargs), func(tangent, weight, None, *args, **kwargs)
    )

"""When an op has to go through its autograd.Function, and what one in place has to copy then."""

from __future__ import annotations

from collections.abc import Callable
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


def copied(x: Tensor) -> Callable[[Any], Any]:
    """What gives a copy for x, made once, and for everything else the thing itself.

    For ops that overwrite x where backward may need it, also where it is an argument a second time.
    """
    copy = x.clone()
    return lambda argument: copy if argument is x else argument

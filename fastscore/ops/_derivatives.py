"""When an op has to go through its autograd.Function."""

from __future__ import annotations

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

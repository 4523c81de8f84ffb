"""CUDA tensors that have no memory, for tests of devices on a machine without a GPU."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COPIES = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh")


class Devices(TorchDispatchMode):
    """Keeps the ops that were called on CUDA tensors, and refuses one of larger tensors that are elsewhere too.

    Attributes:
        called: their names, "namespace::name".
    """

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor) and t.numel() > 1]
        places = {t.device.type for t in tensors} - {"meta"}  # where torch works out shapes
        if "cuda" in places:
            self.called.add(str(func._schema.name))
            assert places == {"cuda"} or func._schema.name in _COPIES, f"{func} on {places}"
        return out


@cache
def can_index_fake_cuda() -> bool:
    """Whether torch indexes fake CUDA tensors here: a CUDA build of torch 2.9 asks for a driver first."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[:1]
    except RuntimeError:
        return False
    return True


@cache
def can_compile_fake_cuda() -> bool:
    """Whether torch.compile takes fake CUDA tensors here: that of torch 2.9 finds them in two modes, and stops."""
    try:
        with FakeTensorMode():
            torch.compile(torch.sin, backend="aot_eager")(torch.empty(2, device="cuda"))
    except torch._dynamo.exc.BackendCompilerFailed:
        return False
    return True

"""The kernels that code starts, with the bytes that they move at least and the operations that they do."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fastscore import ops
from fastscore.ops import Cost, cost

LEAST = 1024
_CPU_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"  # which torch's counter does not know


class Kernel(NamedTuple):
    """A kernel that was counted: its cost, whether it multiplies matrices, and whether in 16 bits."""

    name: str
    cost: Cost
    matrix: bool
    half: bool


class Meter(TorchDispatchMode):
    """Counts kernels on a device: ops of fastscore by `fastscore.ops.cost`, others by their inputs and outputs.

    What works on less than `LEAST` numbers is left out: tables, norms of samples.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if not any(t.device.type == self.device and t.numel() >= LEAST for t in tensors):
            return out
        namespace, name = func._schema.name.split("::")
        half = any(t.dtype in (torch.bfloat16, torch.float16) for t in tensors)
        if namespace.startswith("fastscore"):
            self.kernels.append(Kernel(name, cost(name, args, out, **kwargs), name.startswith("attention"), half))
        elif namespace == "aten" and _moves(func):
            count = _products(func, args, kwargs, out)
            written = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
            operations = sum(t.numel() for t in written) if count is None else count
            reads = 2 if name == "native_group_norm" else 1  # the statistics come first
            moved = reads * ops.size(args, kwargs) + sum(ops.size(t) for t in written)
            self.kernels.append(Kernel(name, Cost(moved, int(operations)), count is not None, half))
        return out


def _products(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """Operations of what multiplies matrices; None for what does not."""
    name = func._schema.name.split("::")[1]
    if name == _CPU_ATTENTION:
        return int(sdpa_flop_count(*(t.shape for t in args[:3])))
    if name == f"{_CPU_ATTENTION}_backward":
        return int(sdpa_backward_flop_count(*(t.shape for t in args[:4])))
    count = flop_registry.get(func._overloadpacket)
    return None if count is None else int(count(*args, **kwargs, out_val=out))


_ALLOCATE = ("empty", "new_empty", "detach", "alias", "_unsafe_view")


def _moves(func: Any) -> bool:
    """Whether an operator starts a kernel: views and allocations do not."""
    returns = [returned.alias_info for returned in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in returns)
    return not is_view and not func._schema.name.split("::")[1].startswith(_ALLOCATE)

"""What a piece of code asks of the machine: operator calls, memory traffic in sizes of the state, host reads.

`Traffic` counts at the dispatcher, as the survey of published samplers did: an operator is "full" when it reads or
writes at least one tensor as large as the state, and its traffic is the bytes of those tensors. Caches are ignored.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# How often a fused operator reads its large inputs. Eager operators are all counted as one pass, which favors them.
_READS = {
    "fastscore::langevin_step": 2,  # norms first, then the update
    "fastscore::langevin_step_": 2,
    "fastscore::group_norm_silu": 2,  # statistics first, then the write
    "fastscore::group_norm_silu_fwd": 2,
}
# Operators that move some rows of a tensor.
_ROWS = {"index_select", "index_copy_"}
# Operators that only allocate, and in-place operators that overwrite without reading.
_ALLOCATE = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_OVERWRITE = {"fill_", "zero_", "copy_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}


@dataclass
class Count:
    """Operators and traffic of a region, or of one step of a loop (then the numbers may be fractions).

    Attributes:
        calls: operators called, views and allocations included.
        full: operators that read or write a tensor at least as large as the state.
        moved: their traffic in sizes of the state.
        by_op: operator name -> (calls, traffic).
    """

    calls: float = 0
    full: float = 0
    moved: float = 0.0
    by_op: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, moved: float) -> None:
        """Count one call of an operator."""
        self.calls += 1
        self.full += moved > 0
        self.moved += moved
        calls, total = self.by_op.get(name, (0, 0.0))
        self.by_op[name] = (calls + 1, total + moved)

    def __str__(self) -> str:
        return f"{self.calls:g} operators, {self.full:g} full, {self.moved:.1f} state sizes"


class Traffic(TorchDispatchMode):
    """Context manager that counts operator calls and memory traffic into `count`.

    Args:
        state: the tensor whose size is the unit, or its number of elements (float32 is then assumed).

    Code under `torch.compile` is invisible to it: count eagerly.
    """

    def __init__(self, state: Tensor | int) -> None:
        super().__init__()
        self._numel = state.numel() if isinstance(state, Tensor) else state
        self._bytes = self._numel * (state.element_size() if isinstance(state, Tensor) else 4)
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.count.add(func._schema.name, self._traffic(func, args, kwargs, result) / self._bytes)
        return result

    def _traffic(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
        """Bytes of large tensors that one call reads and writes."""
        name = str(func._schema.name)
        short = name.split("::")[1]
        aliases = [returned.alias_info for returned in func._schema.returns]
        if short in _ALLOCATE or any(alias is not None and not alias.is_write for alias in aliases):
            return 0  # an allocation or a view
        if short in _ROWS:  # it touches some rows, whatever the size of the whole
            moved = result if short == "index_select" else args[3]
            return 2 * sum(_size(tensor) for tensor in self._large(moved))
        read: dict[int, int] = {}
        written: dict[int, int] = {}
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            mutated = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in self._large(given.get(argument.name)):
                if mutated:
                    written[_place(tensor)] = _size(tensor)
                if not (mutated and (argument.is_out or short in _OVERWRITE)) and not short.endswith("_like"):
                    read[_place(tensor)] = _size(tensor)
        inputs = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in self._large(result):
            if _storage(tensor) not in inputs:
                written[_place(tensor)] = _size(tensor)
        return _READS.get(name, 1) * sum(read.values()) + sum(written.values())

    def _large(self, value: Any) -> list[Tensor]:
        found = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        return [t for t in found if t.numel() >= self._numel and _distinct(t) >= self._numel]


def _distinct(tensor: Tensor) -> int:
    """Elements that really lie in memory: an expanded tensor has fewer than numel()."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def _size(tensor: Tensor) -> int:
    return _distinct(tensor) * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> int:
    """Two arguments that are the same memory are read once."""
    return hash((_storage(tensor), tensor.storage_offset(), tensor.shape, tensor.stride()))


def traffic_per_step(run: Callable[[int], object], state: Tensor | int, steps: tuple[int, int] = (4, 8)) -> Count:
    """What one step costs: the difference between running `steps[1]` and `steps[0]` steps, divided by their distance.

    Set-up and final work cancel. `run(n)` performs n steps.
    """
    counts = []
    for n in steps:
        with Traffic(state) as traffic:
            run(n)
        counts.append(traffic.count)
    few, many = counts
    distance = steps[1] - steps[0]
    by_op = {}
    for name, (calls, moved) in many.by_op.items():
        calls_before, moved_before = few.by_op.get(name, (0, 0.0))
        if calls != calls_before:
            by_op[name] = ((calls - calls_before) / distance, (moved - moved_before) / distance)
    return Count(
        (many.calls - few.calls) / distance,
        (many.full - few.full) / distance,
        (many.moved - few.moved) / distance,
        by_op,
    )


class HostSyncError(AssertionError):
    """Code that must not wait for the device read a value on the host."""


_SYNC_OPS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
}
# Reads that never reach the dispatcher on CPU, where a test must still see them.
_SYNC_METHODS = {
    getattr(Tensor, name)
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")
    if hasattr(Tensor, name)
}


class _Reads:
    """What becomes of a read: it raises, or its name is kept in `found`."""

    def __init__(self, found: list[str] | None) -> None:
        self._found, self._inside = found, False

    def run(self, message: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Report a read and do it; what it does inside is not another."""
        if self._inside:
            return func(*args, **kwargs)
        if self._found is None:
            raise HostSyncError(message)
        self._found.append(message)
        self._inside = True
        try:
            return func(*args, **kwargs)
        finally:
            self._inside = False


class _SyncDispatch(TorchDispatchMode):
    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in _SYNC_OPS:
            return self._reads.run(f"{name} reads a value on the host", func, args, kwargs)
        if name in ("aten::index", "aten::index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        ):
            return self._reads.run(f"{name} with a mask reads a value on the host", func, args, kwargs)
        source = args[1] if name == "aten::copy_" else args[0] if name == "aten::_to_copy" else None
        if isinstance(source, Tensor) and source.device.type != "cpu":
            target = args[0].device if name == "aten::copy_" else kwargs.get("device") or source.device
            if torch.device(target).type == "cpu":
                return self._reads.run(f"{name} copies from {source.device} to the host", func, args, kwargs)
        return func(*args, **kwargs)


class _SyncFunction(TorchFunctionMode):
    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SYNC_METHODS:
            return self._reads.run(f"Tensor.{func.__name__} reads a value on the host", func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def no_host_sync() -> Iterator[None]:
    """A region in which reading a tensor's value on the host raises `HostSyncError`.

    Caught: .item(), .tolist(), .numpy(), .cpu(), bool(), float(), int(), nonzero and its relatives, torch.equal, and
    copies from a device to the host. It works on CPU tensors too, where such a read costs nothing but would cost
    a wait on a GPU.
    """
    reads = _Reads(None)
    with _SyncDispatch(reads), _SyncFunction(reads):
        yield


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """A region in which such reads are let through and listed, one message each."""
    found: list[str] = []
    reads = _Reads(found)
    with _SyncDispatch(reads), _SyncFunction(reads):
        yield found

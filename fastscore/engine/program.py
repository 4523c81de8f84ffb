"""A network as a list of calls that write into memory planned beforehand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastscore.engine.lower import Lowering
from fastscore.engine.memory import lifetimes, places
from fastscore.engine.trace import trace
from fastscore.engine.tune import tune
from fastscore.engine.values import Call, Ref, Root, refs_in, replaced

_SMALL = 4096  # elements of an argument, no image, whose value is worth a comparison

Bound = list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


class StaleError(Exception):
    """A parameter has another shape, memory format or dtype than when the network was traced."""


class Program:
    """What a network computes for arguments of one shape: made once, then run.

    What depends on small arguments alone (the time embedding) is computed anew only when their values change.

    Args:
        model: in evaluation mode.
        args, kwargs: of the call; tensors stand for all of their shape and dtype, everything else for itself.
        threads: that it will run with.
        measure: measure which method is the fastest for each 3x3 convolution that the table of this machine lacks.

    Raises:
        UntraceableError: the network cannot be traced, or the program cannot hold it.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int, measure: bool = False
    ):
        traced = trace(model, args, kwargs)
        lowering = Lowering(traced, threads)
        if measure:
            tune(lowering.shapes, threads)
            lowering = Lowering(traced, threads)
        self.unfused = lowering.unfused
        self._lock = threading.Lock()
        self._fresh: bool  # whether the early calls have to run
        self._out_spec = traced.out_spec
        self._strides = [node.meta["val"].stride() for node in traced.outputs]
        self._results = lowering.results
        self._inputs = [(at, lowering.placed[node]) for at, node in enumerate(traced.inputs) if node in lowering.placed]
        small = {ref.root for _, ref in self._inputs if _is_small(ref.meta)}
        self._early, self._late = _divided(lowering.calls, {ref.root for _, ref in self._inputs} - small)
        kept = small | {ref.root for call in self._early for ref in call.writes}
        calls = [*self._early, *self._late]
        lives = lifetimes(calls, [ref.root for ref in self._results], kept)
        lives |= {ref.root: (0, len(calls)) if ref.root in small else (0, lives.get(ref.root, (0, 0))[1])
                  for _, ref in self._inputs}  # fmt: skip
        self._places, self.arena_bytes = places(lives)
        self._held = list({ref.root: None for call in calls for ref in _sources(call) if ref.root.get is not None})
        with torch.inference_mode(False), torch.no_grad():
            self._arena = torch.empty(self.arena_bytes, dtype=torch.uint8)
            self._bind()

    @property
    def calls(self) -> list[str]:
        """The names of the operations, in order."""
        return [call.name for call in (*self._early, *self._late)]

    def __str__(self) -> str:
        names = [call.name for call in self._late]
        mebi = 2**20
        text = f"{len(names)} calls a step, {self.arena_bytes / mebi:.0f} MiB for values, "
        text += f"{self.packed_bytes / mebi:.0f} MiB of transformed weights"
        unfused = ", ".join(f"{count} {name}" for name, count in Counter(self.unfused).items())
        return text + (f"; as torch computes it: {unfused}" if unfused else "")

    def run(self, leaves: Sequence[Any]) -> Any:
        """The result for the flattened arguments; None where another thread is running it. Raises StaleError."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            with torch.inference_mode(False), torch.no_grad():
                if self._state() != self._known:
                    self._bind()
                for at, tensor in self._small:
                    if self._fresh or not torch.equal(tensor, leaves[at]):
                        self._fresh = True  # also where this call is interrupted
                        tensor.copy_(leaves[at])
                for at, tensor in self._large:
                    tensor.copy_(leaves[at])
                if self._fresh:
                    _execute(self._bound_early)
                    self._fresh = False
                _execute(self._bound_late)
            results = [
                torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
                for tensor, stride in zip(self._outputs, self._strides, strict=True)
            ]
        finally:
            self._lock.release()
        return pytree.tree_unflatten(results, self._out_spec)

    def _state(self) -> list[tuple[int, int]]:
        """What changes when somebody writes to a parameter, or exchanges it."""
        found = []
        for root in self._held:
            tensor = root.get()  # type: ignore[misc]
            found.append((0 if tensor.is_inference() else tensor._version, tensor.data_ptr()))
        return found

    def _bind(self) -> None:
        """Put tensors in the place of references."""
        state = self._state()
        known: dict[Any, Tensor] = {}
        self._made: dict[Root, Tensor] = {}

        def tensor(ref: Ref) -> Tensor:
            meta = ref.meta
            key = ref.root, meta.shape, meta.stride(), meta.storage_offset()
            if key not in known:
                known[key] = self._tensor(ref, tensor)
            return known[key]

        def bound(calls: list[Call]) -> Bound:
            return [
                (
                    call.function,
                    replaced(call.args, tensor),
                    {name: replaced(value, tensor) for name, value in call.kwargs.items()},
                )
                for call in calls
            ]

        self._bound_early, self._bound_late = bound(self._early), bound(self._late)
        self._outputs = [tensor(ref) for ref in self._results]
        placed = [(at, tensor(ref)) for at, ref in self._inputs]
        self._small = [(at, value) for at, value in placed if _is_small(value)]
        self._large = [(at, value) for at, value in placed if not _is_small(value)]
        self._fresh, self._known = True, state
        self.packed_bytes = sum(value.nbytes for value in self._made.values())

    def _tensor(self, ref: Ref, tensor: Callable[[Ref], Tensor]) -> Tensor:
        root, meta = ref.root, ref.meta
        if root.planned:
            at = self._places[root]
            memory = self._arena[at : at + root.elements * root.dtype.itemsize].view(root.dtype)
        elif root.pack is not None:
            if root not in self._made:
                self._made[root] = root.pack(*(tensor(source) for source in root.sources))
            memory = self._made[root]
            if root.whole is None:
                return memory
        else:
            assert root.get is not None
            assert root.whole is not None
            memory, traced = root.get(), root.whole
            if (memory.shape, memory.stride(), memory.dtype) != (traced.shape, traced.stride(), traced.dtype):
                raise StaleError
            if (memory.shape, memory.stride()) == (meta.shape, meta.stride()):
                return memory  # itself: what is kept beside it goes by its identity
        return torch.as_strided(memory, meta.shape, meta.stride(), memory.storage_offset() + meta.storage_offset())


def _is_small(argument: Tensor) -> bool:
    return argument.dim() < 3 and argument.numel() <= _SMALL


def _execute(calls: Bound) -> None:
    for function, args, kwargs in calls:
        function(*args, **kwargs)


def _sources(call: Call) -> list[Ref]:
    """All references of a call, and what its packed weights are made of."""
    found, waiting = [], list(call.refs())
    while waiting:
        ref = waiting.pop()
        found.append(ref)
        waiting += ref.root.sources
    return found


def _divided(calls: list[Call], large: set[Root]) -> tuple[list[Call], list[Call]]:
    """The calls that no large argument reaches, and the others."""
    reached = set(large)
    early, late = [], []
    for call in calls:
        written = {ref.root for ref in call.writes}
        read = {ref.root for value in (*call.args, *call.kwargs.values()) for ref in refs_in(value)}
        if (read | written) & reached:
            reached |= written
            late.append(call)
        else:
            early.append(call)
    return early, late

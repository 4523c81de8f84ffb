"""The engine in front of a network: which calls a program takes, and when it is made."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from fastscore import _backend
from fastscore._library import NATIVE
from fastscore.engine.program import Program, StaleError
from fastscore.engine.trace import UntraceableError

# Programs kept, one for each shape of the arguments; calls after which a further shape takes the place of the oldest
# (an adaptive sampler passes through many shapes, and stays at none).
_MOST, _PATIENCE = 4, 8


def untouched() -> bool:
    """Whether a network has to run as it is written: under torch.compile, or on another backend that somebody chose."""
    return torch.compiler.is_compiling() or _backend.forced not in (None, "cpu")


class Engine:
    """The programs of a network, by the arguments that they are for.

    A call is left to the network itself where a program would not do the same: where gradients, tangents or a functorch
    transform are asked for, in training mode, under autocast, torch.compile or another backend, with hooks on layers,
    for tensors that are no plain float32 or integers on the CPU, and for arguments that are Python numbers.
    """

    def __init__(self) -> None:
        self.programs: dict[Any, Program] = {}
        self.refusals: dict[Any, str] = {}
        self._seen: Counter[Any] = Counter()
        self._watched: list[Any] | None = None

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Whether a program took the call, and its result."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if model.training or not self._may(model, leaves):
            return False, None
        key = self.key(leaves, spec)
        if key not in self.programs:
            self._seen[key] += 1
            full = len(self.programs) >= _MOST and self._seen[key] < _PATIENCE
            if full or key in self.refusals or len(self.refusals) > _MOST:
                return False, None
            self.prepare(model, args, kwargs)
            if key not in self.programs:
                return False, None
        try:
            result = self.programs[key].run(leaves)
        except StaleError:
            del self.programs[key]
            return self(model, args, kwargs)
        return result is not None, result

    def prepare(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, measure: bool = False
    ) -> Program | str:
        """Make the program for these arguments, or say why there is none; `measure` as in `Program`."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        key = self.key(leaves, spec)
        try:
            program = Program(model, args, kwargs, torch.get_num_threads(), measure)
        except UntraceableError as why:
            self.refusals[key] = str(why)
            return str(why)
        while len(self.programs) >= _MOST:
            oldest = next(iter(self.programs))
            del self.programs[oldest]
            self._seen.pop(oldest, None)
        self.programs[key] = program
        return program

    def describe(self) -> list[str]:
        """One line for each program, and for each kind of call that has none."""
        if not self.programs and not self.refusals:
            return ["engine: makes its program at the first call without gradients"]
        return [
            *(f"engine: {_shapes(key)}: {program}" for key, program in self.programs.items()),
            *(f"engine: {_shapes(key)}: none, {why}" for key, why in self.refusals.items()),
        ]

    @staticmethod
    def key(leaves: list[Any], spec: Any) -> Any:
        """What a program is made for."""
        described = tuple((v.shape, v.dtype) if isinstance(v, Tensor) else (type(v), v) for v in leaves)
        return described, spec, torch.get_num_threads()

    def _may(self, model: nn.Module, leaves: list[Any]) -> bool:
        if untouched() or NATIVE is None or torch.is_autocast_enabled("cpu"):
            return False
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return False
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if not tensors or any(leaf is not None and not isinstance(leaf, bool | str) for leaf in others):
            return False
        if any(type(t) not in (Tensor, nn.Parameter) or t.device.type != "cpu" or not t.numel() for t in tensors):
            return False
        if any(t.is_floating_point() and t.dtype is not torch.float32 for t in tensors):
            return False
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *model.parameters())):
            return False
        if self._watched is None:
            modules = [module for module in model.modules() if module is not model]
            self._watched = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        return not any(self._watched)

    def __deepcopy__(self, memo: Any) -> Engine:
        return Engine()  # a copy of the network has weights of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, ()


def _shapes(key: Any) -> str:
    described = key[0]
    return " ".join(str(tuple(first)) for first, _ in described if isinstance(first, torch.Size))

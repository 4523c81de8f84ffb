"""How a kernel is started, chosen by timing it: only where the environment variable FASTSCORE_AUTOTUNE is 1.

Without it a launch follows its plan alone, a function of shapes and dtypes: which of two configurations wins a race
differs from run to run, and with it, where sums are cut differently, the last bits of a result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

T = TypeVar("T")
WARPS = {"linear_step_kernel", "solver_step_kernel"}
"""Kernels that work element by element: the number of their warps changes no bit."""


def asked(environment: Mapping[str, str]) -> bool:
    """Whether FASTSCORE_AUTOTUNE asks for timing.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    value = environment.get("FASTSCORE_AUTOTUNE", "0")
    if value not in ("0", "1"):
        raise ValueError(f"FASTSCORE_AUTOTUNE must be 0 or 1, got {value!r}")
    return value == "1"


ENABLED = asked(os.environ)
_best: dict[Hashable, Any] = {}


def fastest(
    key: tuple[Hashable, ...],
    plan: T,
    others: Callable[[], Iterable[T]],
    start: Callable[[T], None],
    on: Tensor,
    changed: Iterable[Tensor] = (),
) -> T:
    """The configuration that takes the least time; the plan, where nothing may be timed.

    Args:
        key: what the choice depends on beside the dtype and the device of `on`. Timed once for each in a process.
        plan: the configuration without timing.
        others: makes those that it competes with, pruned.
        start: starts the kernel with a configuration. What it writes has to be overwritten by the real start, or be
        changed: in `changed`, which is put back as it was.
    """
    if not (ENABLED and can_be_timed(on)):
        return plan
    key = (*key, on.dtype, on.device)
    if key not in _best:
        before = [(tensor, tensor.clone()) for tensor in changed]
        choices = [plan, *others()]
        times = [milliseconds(partial(start, choice), on.device) for choice in choices]
        for tensor, copy in before:
            tensor.copy_(copy)
        _best[key] = choices[times.index(min(times))]
    best: T = _best[key]
    return best


def can_be_timed(on: Tensor) -> bool:
    """Whether there is a GPU behind a tensor, and its stream is not captured."""
    if not on.is_cuda or type(on) not in (Tensor, torch.nn.Parameter) or os.environ.get("TRITON_INTERPRET") == "1":
        return False
    return not torch.cuda.is_current_stream_capturing()


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """The median; infinity for what the device has not the resources for."""
    with torch.cuda.device(device):
        try:
            return float(triton.testing.do_bench(run, return_mode="median"))
        except (OutOfResources, PTXASError):
            return float("inf")


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"])


def with_warps(
    kernel: Any, start: Callable[[dict[str, Any]], None], args: tuple[Any, ...], options: dict[str, Any]
) -> dict[str, Any]:
    """The options of a launch with half, as many or twice as many warps."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    storages = [t.untyped_storage()._cdata for t in tensors]
    twice = [t for t, storage in zip(tensors, storages, strict=True) if storages.count(storage) > 1]  # in place
    key = kernel.__name__, *((a.dtype if isinstance(a, Tensor) else a) for a in args), *sorted(options.items())
    warps = options["num_warps"]
    return fastest(
        key,
        options,
        lambda: [options | {"num_warps": w} for w in (warps // 2, 2 * warps) if 1 <= w <= 16],
        start,
        tensors[0],
        twice,
    )

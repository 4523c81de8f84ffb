"""How every kernel is started: on the device of its tensors, and counted."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch

from . import _autotune

LAUNCHES: Counter[str] = Counter()
"""How often each kernel was started, by its name: what tests look at to see which backend ran."""


def warps_of(threads: int) -> int:
    """Warps of a program of so many threads."""
    return threads // (64 if torch.version.hip else 32)


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
    """Start `programs` instances of a Triton kernel on the current stream of `device`."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FUNCTIONAL) is not None:  # torch.compile traces
        torch.library.wrap_triton(kernel)[(programs,)](*args, **options)
        return
    start = partial(_start, kernel, programs, device, args)
    if _autotune.ENABLED and kernel.__name__ in _autotune.WARPS:
        options = _autotune.with_warps(kernel, start, args, options)
    start(options)


def _start(kernel: Any, programs: int, device: torch.device, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    LAUNCHES[kernel.__name__] += 1
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **options)
    else:
        kernel[(programs,)](*args, **options)

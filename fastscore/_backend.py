"""Which versions of the ops there are, which one is asked for, and why one is not there.

    reference   plain PyTorch, everywhere; the specification
    cpu         C++ with SIMD, for tensors on the CPU
    triton      Triton kernels, for CUDA tensors (NVIDIA and AMD), and for CPU tensors in Triton's interpreter
    cuda        CUDA C++, for CUDA tensors

"auto" takes the fastest one that is there for the tensors of each call. The environment variable FASTSCORE_BACKEND sets
it for a process, `with fastscore.backend(...)` for a block. The choice holds for all threads.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from fastscore import _library

BACKENDS = ("reference", "cpu", "triton", "cuda")
_DEVICE = {"cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton itself looks at it when it is imported
if INTERPRETED:
    _DEVICE["triton"] = "cpu"


class BackendUnavailableError(RuntimeError):
    """A backend was asked for that is not there; the message says why, and what would bring it."""


def why_not(name: str) -> str | None:
    """Why the backend `name` cannot run on this machine and what would bring it; None if it can.

    Raises:
        ValueError: there is no backend of this name.
    """
    _check_name(name, BACKENDS)
    if name == "reference":
        return None
    if name == "triton":
        if not _library.TRITON:
            return "triton is not installed; it comes with the CUDA and ROCm builds of torch, or `pip install triton`"
        if not INTERPRETED and not torch.cuda.is_available():
            return "torch sees no GPU; TRITON_INTERPRET=1, set before Python starts, runs the kernels on CPU tensors"
        return None
    if not _library.NATIVE:
        return f"{_library.WHY_NOT_NATIVE}; build it with `pip install --no-build-isolation -e .` beside your torch"
    if name == "cuda":
        if _library.build_info()["cuda"] is None:
            return (
                "fastscore was built without CUDA kernels; rebuild it with FASTSCORE_BUILD_CUDA=1, "
                "a CUDA build of torch and its CUDA toolkit (nvcc)"
            )
        if not torch.cuda.is_available():
            return "torch sees no CUDA device (the kernels are built in); check the driver and CUDA_VISIBLE_DEVICES"
    return None


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can run on this machine."""
    return tuple(name for name in BACKENDS if why_not(name) is None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Makes every op inside the block run on the backend `name`: one of `BACKENDS`, or "auto".

    Raises:
        ValueError: there is no backend of this name.
        BackendUnavailableError: it is not there; says why.
    """
    global forced
    chosen = _choose(name)
    before, forced = forced, chosen
    try:
        yield
    finally:
        forced = before


def resolve(device: torch.device) -> str:
    """The backend that runs an op on tensors of this device, under the present choice.

    Raises:
        ValueError: the backend asked for does not take tensors of this device, or FASTSCORE_BACKEND names none.
        BackendUnavailableError: FASTSCORE_BACKEND names one that is not there.
    """
    if forced is None:
        for name in ("cuda", "triton", "cpu"):
            if _DEVICE[name] == device.type and why_not(name) is None:
                return name
        return "reference"
    _from_environment(forced)
    if forced != "reference" and _DEVICE[forced] != device.type:
        raise ValueError(
            f"backend {forced!r} takes {_DEVICE[forced]} tensors, got one on {device}; "
            "choose another backend, or 'auto', or move the tensor"
        )
    return forced


def reference_asked(device: torch.device) -> bool:
    """Whether an op is to call its reference directly; the test every op makes, so nothing slow is done here.

    Where it is False the dispatcher of torch finds the kernel by the device, and the reference where there is none.
    """
    return forced is not None and resolve(device) == "reference"


def op(name: str) -> torch._ops.OpOverload:
    """The op `name` on the backend now chosen, for tensors that `resolve` lets pass.

    Raises:
        BackendUnavailableError: the backend asked for has no kernel for this op.
    """
    found = _library.OVERLOADS[forced].get(name)
    if found is None:
        raise BackendUnavailableError(f"backend {forced!r} has no kernel for {name}; choose 'auto' or another backend")
    return found


def _choose(name: str, source: str = "backend") -> str | None:
    _check_name(name, ("auto", *BACKENDS), source)
    if name == "auto":
        return None
    reason = why_not(name)
    if reason is not None:
        raise BackendUnavailableError(f"{source}: {name!r} is not available: {reason}")
    return name


def _check_name(name: str, names: tuple[str, ...], source: str = "backend") -> None:
    if name not in names:
        raise ValueError(f"{source} must be one of {', '.join(names)}, got {name!r}")


@cache
def _from_environment(name: str) -> None:
    """Look at FASTSCORE_BACKEND when it is first used: importing fastscore fails for no backend."""
    if name == os.environ.get("FASTSCORE_BACKEND"):
        _choose(name, "FASTSCORE_BACKEND")


forced: str | None = os.environ.get("FASTSCORE_BACKEND") or None
if forced == "auto":
    forced = None

"""Timing of contenders against each other on a machine that does other things too.

The contenders take turns, round by round, in rotating order, so that whatever slows the machine down slows all of
them; speed-ups are medians of the ratios within a round. On a GPU the time is that between two CUDA events around a
call, with an L2 cache that was flushed before.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fastscore import _library
from fastscore.testing.meter import Meter
from fastscore.testing.traffic import Count, Traffic

Run = Callable[[], object]
T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One question a benchmark asks.

    Attributes:
        op: what is timed, e.g. "linear_step".
        label: shape, dtype and whatever else distinguishes the case, e.g. "(16, 3, 32, 32) float32".
        contenders: name -> function of no arguments. "eager" is what the others are compared with.
        check: raises unless every contender computes the right thing; runs before anything is timed.
        state: a tensor of the size that traffic is counted in.
        steps: how many steps one call makes, of all contenders or of each; times and traffic are reported per step.
        about: what else a reader of the table should know, e.g. who the peer is.
        floor: whether a floor is measured for "fastscore": not where the bytes of one step do not move at once.
        pause: seconds between turns, in which the threads of one runtime stop spinning before another's begin.
    """

    op: str
    label: str
    contenders: dict[str, Run]
    check: Callable[[], None]
    state: Tensor
    steps: int | dict[str, int] = 1
    about: str = ""
    floor: bool = True
    pause: float = 0.0

    def steps_of(self, name: str) -> int:
        """How many steps a contender makes in one call."""
        return self.steps[name] if isinstance(self.steps, dict) else self.steps


@dataclass(frozen=True)
class Result:
    """What was measured; it holds no contender.

    Attributes:
        seconds: per step, of every round and contender, in the order they were measured.
        traffic: per step.
        state_bytes: what traffic is counted in.
        launched: the kernels that ran.
        floor: seconds per step below which the kernels of "fastscore" cannot get: a copy that moves their bytes, timed
            in the same rounds, or their operations at the rate of a product of matrices, whichever takes longer.
    """

    seconds: dict[str, list[float]]
    traffic: dict[str, Count | None]
    state_bytes: int
    launched: list[str]
    floor: float | None

    def median(self, name: str) -> float:
        """Median seconds per step."""
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, over: str = "eager") -> float:
        """How many times faster than another contender: the median over the rounds of the ratio within a round."""
        pairs = zip(self.seconds[over], self.seconds[name], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def bandwidth(self, name: str) -> float | None:
        """Bytes that the contender reads and writes per second, or None where its traffic cannot be seen."""
        count = self.traffic[name]
        if count is None:
            return None
        return count.moved * self.state_bytes / self.median(name)


def race(case: Case, *, seconds: float = 3.0, min_rounds: int = 5, slice_seconds: float = 5e-4) -> Result:
    """Check the contenders, then time them in turns.

    Args:
        case: what to time.
        seconds: how long to go on, for all contenders together.
        min_rounds: rounds that are timed even if that takes longer.
        slice_seconds: a contender is repeated within its turn for about this long.
    """
    before = _launches()
    case.check()
    for run in case.contenders.values():
        _warm(run)
    launched = sorted(name for name, count in _launches().items() if count > before.get(name, 0))
    device = case.state.device
    runs, operations = dict(case.contenders), 0.0
    if case.floor and "fastscore" in runs:
        moved, operations = _least(case)
        runs[_COPY] = _copy(moved, device)
    watches = {name: _stopwatch(run, device, slice_seconds) for name, run in runs.items()}
    measured: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(measured[order[0]]) < min_rounds:
        for name in order:
            if case.pause:
                time.sleep(case.pause)
            measured[name].append(watches[name]() / (1 if name == _COPY else case.steps_of(name)))
        order = order[1:] + order[:1]
    copies = measured.pop(_COPY, None)
    return Result(
        measured,
        {name: _traffic(case, name) for name in case.contenders},
        case.state.numel() * case.state.element_size(),
        launched,
        None if copies is None else max(statistics.median(copies), operations / matmul_rate(device, case.state.dtype)),
    )


_COPY = "copy"


def _warm(run: Run, seconds: float = 0.5) -> None:
    """What compiles and what fills caches: up to three calls, fewer of what is slow."""
    end = time.perf_counter() + seconds
    for _ in range(3):
        run()
        if time.perf_counter() > end:
            return


def _least(case: Case) -> tuple[float, float]:
    """Bytes that a step of "fastscore" moves at least, and its operations."""
    with Meter(case.state.device.type) as meter:
        case.contenders["fastscore"]()
    costs, steps = [kernel.cost for kernel in meter.kernels], case.steps_of("fastscore")
    return sum(cost.bytes for cost in costs) / steps, sum(cost.operations for cost in costs) / steps


def _copy(moved: float, device: torch.device) -> Run:
    """A copy that reads and writes as many bytes together."""
    source = torch.ones(max(1, round(moved / 8)), device=device)  # zeros would all be one page of memory
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large product of matrices, the best of ten; measured once."""
    size = 4096 if device.type == "cuda" else 1024
    if device.type == "cpu" and dtype.itemsize == 2:
        dtype = torch.float32  # kernels of the CPU compute 16 bits in it, and products of 16 bits may be emulated
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    watch = _stopwatch(lambda: torch.mm(a, b, out=out), device, slice_seconds=0.02)
    return 2 * size**3 / min(watch() for _ in range(10))


def _stopwatch(run: Run, device: torch.device, slice_seconds: float) -> Callable[[], float]:
    """What measures the seconds of a call, by as many calls as fill the slice."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return lambda: float(do_bench(run, warmup=0, rep=1e3 * slice_seconds, return_mode="median")) / 1e3
    once = _time(run, 1)
    if once < slice_seconds:
        once = min(once, *(_time(run, 1) for _ in range(2)))
    repeats = max(1, min(1000, round(slice_seconds / max(once, 1e-9))))
    return lambda: _time(run, repeats)


def _time(run: Run, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _traffic(case: Case, name: str) -> Count | None:
    """The traffic of one step; None for compiled code, which the dispatcher does not see."""
    if "compile" in name:
        return None
    with Traffic(case.state) as traffic:
        case.contenders[name]()
    count = traffic.count
    steps = case.steps_of(name)
    return Count(count.calls / steps, count.full / steps, count.moved / steps, count.by_op)


def _launches() -> dict[str, int]:
    """How often each kernel ran in this process, of the extension (if it is there) and of Triton (if it was used)."""
    triton = sys.modules.get("fastscore.kernels._launch")
    return (_library.NATIVE.launches() if _library.NATIVE else {}) | (dict(triton.LAUNCHES) if triton else {})


def compiled(function: Callable[..., T], device: torch.device) -> Callable[..., T]:
    """`torch.compile` at its best: on CPU the generator of the compiler is several times slower than randn_like."""
    result: Callable[..., T] = torch.compile(function, options={"fallback_random": device.type == "cpu"})
    return result


PEERS = ("diffusers", "k-diffusion", "onnxruntime", "openvino", "scipy", "torchdiffeq", "torchsde")


def machine(device: torch.device) -> dict[str, str | int | float]:
    """What was measured, and on what: processor, instruction set, threads, load by other processes, the GPU, versions
    of PyTorch and of the peers that are installed, and the commit of fastscore.
    """
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    found: dict[str, str | int | float] = {
        "cpu": model,
        "device": str(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    }
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def commit() -> str:
    """The commit of the source, "none" outside of a repository; "+" where tracked files differ from it."""
    root = str(Path(__file__).parents[2])
    try:
        found, changed = (
            subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return found + "+" * bool(changed)

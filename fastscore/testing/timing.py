"""Timing of contenders against each other on a machine that does other things too.

The contenders take turns, round by round, in rotating order, so that whatever slows the machine down slows all of
them; speed-ups are medians of the ratios within a round. On a GPU the time is that between two CUDA events around a
call, with an L2 cache that was flushed before.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fastscore import _library
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
    """

    op: str
    label: str
    contenders: dict[str, Run]
    check: Callable[[], None]
    state: Tensor
    steps: int | dict[str, int] = 1
    about: str = ""

    def steps_of(self, name: str) -> int:
        """How many steps a contender makes in one call."""
        return self.steps[name] if isinstance(self.steps, dict) else self.steps


@dataclass(frozen=True)
class Result:
    """Seconds per step of every round and contender, in the order they were measured, and the traffic per step."""

    case: Case
    seconds: dict[str, list[float]]
    traffic: dict[str, Count | None]
    launched: list[str]

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
        return count.moved * self.case.state.numel() * self.case.state.element_size() / self.median(name)


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
        for _ in range(3):  # compiles, fills caches
            run()
    launched = sorted(name for name, count in _launches().items() if count > before.get(name, 0))
    device = case.state.device
    watches = {name: _stopwatch(run, device, slice_seconds) for name, run in case.contenders.items()}
    measured: dict[str, list[float]] = {name: [] for name in case.contenders}
    order = list(case.contenders)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(measured[order[0]]) < min_rounds:
        for name in order:
            measured[name].append(watches[name]() / case.steps_of(name))
        order = order[1:] + order[:1]
    return Result(case, measured, {name: _traffic(case, name) for name in case.contenders}, launched)


def _stopwatch(run: Run, device: torch.device, slice_seconds: float) -> Callable[[], float]:
    """What measures the seconds of a call, by as many calls as fill the slice."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return lambda: float(do_bench(run, warmup=0, rep=1e3 * slice_seconds, return_mode="median")) / 1e3
    once = min(_time(run, 1) for _ in range(3))
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


def machine(device: torch.device) -> dict[str, str | int | float]:
    """What was measured on: processor, instruction set, threads, PyTorch, load by other processes, and the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = models[0] if models else model
    found: dict[str, str | int | float] = {
        "cpu": model,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found

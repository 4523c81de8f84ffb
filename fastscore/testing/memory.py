"""Peak memory of a piece of code."""

from collections.abc import Callable

import torch


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch's allocator held at most while `run` ran, above what it held before.

    On a CPU every allocation and release is counted, with those inside of operators; run it once before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in sorted(_allocations(profile), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _allocations(profile: torch.profiler.profile) -> list:
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    return [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]

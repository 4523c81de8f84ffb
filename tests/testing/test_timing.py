import importlib.metadata
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastscore.testing.timing import Case, _copy, _least, _stopwatch, machine, matmul_rate, race


def _case(check=lambda: None, steps=1):
    x = torch.ones(4, 100)
    return Case(
        "nap",
        "4x100",
        {
            "eager": lambda: (time.sleep(4e-3), x + 1),
            "torch.compile": lambda: None,
            "fastscore": lambda: time.sleep(1e-3),
        },
        check,
        x,
        steps,
    )


def test_contenders_take_turns_and_are_compared_within_rounds():
    result = race(_case(), seconds=0.01, min_rounds=5)
    assert {name: len(rounds) for name, rounds in result.seconds.items()} == dict.fromkeys(result.seconds, 5)
    assert result.median("eager") >= 4e-3
    assert 1e-3 <= result.median("fastscore") < result.median("eager")
    assert 1 < result.speedup("fastscore") <= result.median("eager") / 1e-3 * 2
    assert result.speedup("eager") == 1
    assert result.traffic["eager"].moved == 2
    assert result.traffic["torch.compile"] is None  # invisible to the dispatcher
    assert result.bandwidth("torch.compile") is None
    assert result.bandwidth("eager") == pytest.approx(2 * 1600 / result.median("eager"))


def test_times_and_traffic_are_per_step():
    result = race(_case(steps=4), seconds=0.01, min_rounds=3)
    assert 1e-3 <= result.median("eager") < 4e-3
    assert result.traffic["eager"].moved == 0.5


def test_a_floor_is_what_the_kernels_of_fastscore_cannot_do_without():
    x = torch.ones(400, 300)
    case = Case("x", "y", {"fastscore": lambda: (x + 1).exp()}, lambda: None, x, steps=2)
    moved, operations = _least(case)
    assert (moved, operations) == (2 * 4 * x.numel(), x.numel())  # per step: read once, written once
    assert _copy(moved, x.device)().nbytes == moved / 2  # as many are read
    result = race(case, seconds=0, min_rounds=5)
    assert 0 < result.floor < 2 * result.median("fastscore")
    a = torch.ones(256, 256)
    product = Case("x", "y", {"fastscore": lambda: a @ a}, lambda: None, a)
    assert _least(product)[1] == 2 * 256**3
    assert race(product, seconds=0, min_rounds=1).floor >= 2 * 256**3 / matmul_rate(a.device, a.dtype)


def test_there_is_no_floor_without_a_contender_of_ours_or_where_none_is_asked_for():
    x = torch.ones(4)
    runs = {"fastscore": lambda: x + 1}
    assert race(Case("x", "y", {"eager": runs["fastscore"]}, lambda: None, x), seconds=0, min_rounds=1).floor is None
    assert race(Case("x", "y", runs, lambda: None, x, floor=False), seconds=0, min_rounds=1).floor is None


def test_attention_on_cpu_is_counted_by_its_products():
    q, k, v = (torch.rand(2, 3, n, 8) for n in (32, 64, 64))
    case = Case("x", "y", {"fastscore": lambda: F.scaled_dot_product_attention(q, k, v)}, lambda: None, q)
    assert _least(case)[1] == 2 * 2 * (2 * 3 * 32 * 64 * 8)


def test_nothing_is_timed_before_the_check_passes():
    ran = []

    def refuse():
        raise AssertionError("wrong numbers")

    case = Case("x", "y", {"eager": lambda: ran.append(1)}, refuse, torch.ones(1))
    with pytest.raises(AssertionError, match="wrong numbers"):
        race(case)
    assert not ran


def test_machine_says_what_was_measured_on():
    found = machine(torch.device("cpu"))
    assert found["threads"] == torch.get_num_threads()
    assert found["capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["load"] >= 0
    assert all(found[key] for key in ("cpu", "torch", "commit"))
    assert found["device"] == "cpu"
    assert found["torchdiffeq"] == importlib.metadata.version("torchdiffeq")
    assert "gpu" not in found


def test_a_gpu_is_timed_by_its_events_with_the_cache_flushed_before_every_call(monkeypatch):
    """Triton's loop, on a device whose clock stands still but for what the fakes do."""
    triton = pytest.importorskip("triton")
    clock, cold = [0.0], [False]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def elapsed_time(self, end):  # in milliseconds
            return end.at - self.at

    class Driver:
        def get_device_interface(self):
            return SimpleNamespace(Event=Event, synchronize=lambda: None)

        def get_empty_cache_for_benchmark(self):
            return cold

        def clear_cache(self, cache):
            clock[0] += 100  # which is not to be counted
            cache[0] = True

    def takes(milliseconds):
        def run():
            clock[0] += milliseconds if cold[0] else 0.25 * milliseconds  # faster from the cache
            cold[0] = False

        return run

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    watches = [_stopwatch(takes(ms), torch.device("cuda"), slice_seconds=0.05) for ms in (0.5, 4)]
    assert [watch() for watch in watches] == pytest.approx([0.5e-3, 4e-3])
    assert clock[0] >= 2 * 50  # the slice was filled


def test_kernels_of_triton_are_among_those_that_ran():
    pytest.importorskip("triton")
    from fastscore.kernels._launch import LAUNCHES

    def run():
        LAUNCHES["some_kernel"] += 1

    case = Case("x", "y", {"fastscore": run}, lambda: None, torch.ones(1))
    assert "some_kernel" in race(case, seconds=0, min_rounds=1).launched

import time

import pytest
import torch

from fastscore.testing.timing import Case, machine, race


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


def test_nothing_is_timed_before_the_check_passes():
    ran = []

    def refuse():
        raise AssertionError("wrong numbers")

    case = Case("x", "y", {"eager": lambda: ran.append(1)}, refuse, torch.ones(1))
    with pytest.raises(AssertionError, match="wrong numbers"):
        race(case)
    assert not ran


def test_machine_says_what_was_measured_on():
    found = machine()
    assert found["threads"] == torch.get_num_threads()
    assert found["capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["load"] >= 0
    assert all(found[key] for key in ("cpu", "torch"))

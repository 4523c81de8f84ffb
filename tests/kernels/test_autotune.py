"""Timed configurations: when nothing is timed, what competes, what is remembered, what stays untouched."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore.kernels import _attention_plan, _autotune
from fastscore.kernels._launch import LAUNCHES
from fastscore.ops import attention, linear_step, linear_step_
from fastscore.testing.attention import QUANTITIES, assert_parity, make_case, values

KINDS = ("fwd", "jvp", "grad_q", "grad_kv")
LARGE = 227 * 1024
LAUNCHERS = [import_module(f"fastscore.kernels._attention_{kind}") for kind in ("fwd", "jvp", "bwd")]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Tuning is on, and any tensor can be timed: how long each start took, the later the shorter."""
    times: list[float] = []

    def milliseconds(run: Callable[[], None], device: torch.device) -> float:
        run()
        run()
        times.append(-float(len(times)))
        return times[-1]

    monkeypatch.setattr(_autotune, "ENABLED", True)
    monkeypatch.setattr(_autotune, "can_be_timed", lambda on: True)
    monkeypatch.setattr(_autotune, "milliseconds", milliseconds)
    monkeypatch.setattr(_attention_plan, "shared_memory", lambda device: LARGE)
    monkeypatch.setattr(_autotune, "_best", {})
    return times


def step(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, h = (torch.randn(2, 3, 5, 4, generator=generator).to(device, dtype) for _ in range(2))
    return x, [h], torch.tensor([1.5, 0.25, 0.0], device=device)


def test_nothing_is_timed_unless_asked_for(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> float:
        raise AssertionError("timed")

    monkeypatch.setattr(_autotune, "milliseconds", never)
    monkeypatch.setattr(_autotune, "can_be_timed", lambda on: True)
    assert not _autotune.ENABLED
    values(attention, make_case((1, 1, 4, 4, 4), device=device))
    linear_step(*step(torch.float32, device))
    monkeypatch.setattr(_autotune, "ENABLED", True)
    with pytest.raises(AssertionError, match="timed"):
        linear_step(*step(torch.float32, device))


def test_only_memory_of_a_gpu_is_timed(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_autotune, "ENABLED", True)
    assert not _autotune.can_be_timed(torch.empty(1))
    with torch._subclasses.FakeTensorMode():
        assert not _autotune.can_be_timed(torch.empty(1, device="cuda"))
    values(attention, make_case((1, 1, 4, 4, 4), device=device))


@pytest.mark.parametrize(("value", "enabled"), [(None, False), ("0", False), ("1", True), ("yes", None)])
def test_the_variable(value: str | None, enabled: bool | None, device: torch.device) -> None:
    if enabled is None:
        with pytest.raises(ValueError, match="FASTSCORE_AUTOTUNE must be 0 or 1, got 'yes'"):
            _autotune.asked({"FASTSCORE_AUTOTUNE": "yes"})
    else:
        assert _autotune.asked({} if value is None else {"FASTSCORE_AUTOTUNE": value}) is enabled
    values(attention, make_case((1, 1, 1, 1, 1), device=device))


def test_the_fastest_is_taken_and_remembered(device: torch.device, timed: list[float]) -> None:
    started: list[str] = []

    def fastest(key: str, on: Tensor) -> str:
        return _autotune.fastest((key,), "plan", lambda: ["second", "third"], started.append, on)

    x = torch.empty(1, device=device)
    assert fastest("a", x) == "third"  # the last one took the least time
    assert [*dict.fromkeys(started)] == ["plan", "second", "third"]
    assert fastest("a", x) == "third"
    assert len(timed) == 3
    fastest("b", x)
    fastest("a", x.double())
    assert len(timed) == 9
    values(attention, make_case((1, 1, 1, 1, 1), device=device))


def test_a_configuration_without_resources_is_not_taken(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def do_bench(run: Callable[[], None], return_mode: str) -> float:
        run()
        return 1.0

    def start(choice: str) -> None:
        if choice == "large":
            raise _autotune.OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(_autotune.triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())  # any context
    times = [_autotune.milliseconds(lambda c=c: start(c), device) for c in ("large", "small")]
    assert times == [float("inf"), 1.0]
    values(attention, make_case((1, 1, 1, 1, 1), device=device))


def test_a_step_in_place_is_taken_once(device: torch.device, timed: list[float]) -> None:
    x, history, coefficients = step(torch.float32, device)
    expected = linear_step(x, history, coefficients)
    assert len(timed) == 3
    torch.testing.assert_close(expected, reference.linear_step(x, history, coefficients))
    _autotune._best.clear()
    linear_step_(x, history, coefficients)
    assert len(timed) == 6
    assert torch.equal(x, expected)
    before = LAUNCHES.total()
    linear_step_(x, history, coefficients)
    assert LAUNCHES.total() == before + 1, "remembered"


def test_a_choice_holds_for_all_batches(device: torch.device, timed: list[float]) -> None:
    case = make_case((2, 1, 17, 19, 16), device=device)
    first = values(attention, case)["y"]
    count = len(timed)
    assert count > 1
    alone = values(attention, {name: t[1:] for name, t in case.items()})["y"]
    assert len(timed) == count
    assert torch.equal(alone[0], first[1])
    values(attention, make_case((1, 1, 33, 19, 16), device=device))
    assert len(timed) > count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [40, 128, 512])
def test_what_competes(size: int, dtype: torch.dtype, kind: str, device: torch.device) -> None:
    q = torch.empty(1, 1, 1, size, dtype=dtype, device="meta")
    plan = _attention_plan.config(kind, q, 4096, 4096)
    found = _attention_plan.candidates(kind, q, 4096, 4096, LARGE)
    assert plan not in found
    assert len(found) <= 12
    assert all(found.count(options) == 1 for options in found)
    for options in found:
        assert options["num_warps"] in (1, 2, 4, 8)
        assert min(options["block_n"], options["block_m"]) >= 16
        assert {name: options[name] for name in ("pieces", "columns", "slices")} == {
            name: plan[name] for name in ("pieces", "columns", "slices")
        }
    assert len(_attention_plan.candidates(kind, q, 4096, 4096, 48 * 1024)) <= len(found)
    short = _attention_plan.candidates(kind, q, 16, 16, LARGE)
    assert all(options["block_n"] == options["block_m"] == 16 for options in short)
    values(attention, make_case((1, 1, 1, 1, 1), device=device))


def test_what_does_not_fit_does_not_compete(device: torch.device) -> None:
    """Blocks of 64 queries and 64 keys of 128 columns, two loads ahead: 16 KB, and 64 KB."""
    q = torch.empty(1, 1, 1, 128, dtype=torch.bfloat16, device="meta")
    plan = _attention_plan.config("fwd", q, 4096, 4096)
    assert (plan["block_n"], plan["block_m"], plan["num_stages"], plan["num_warps"]) == (64, 64, 2, 4)
    assert _attention_plan.fits("fwd", plan, q, 80 * 1024)
    assert not _attention_plan.fits("fwd", plan, q, 80 * 1024 - 1)
    assert _attention_plan.fits("fwd", plan | {"block_n": 64, "block_m": 128}, q, LARGE)  # 128 registers of numbers
    assert not _attention_plan.fits("fwd", plan | {"block_n": 128}, q, LARGE)
    assert _attention_plan.fits("fwd", plan | {"block_n": 128, "num_warps": 8}, q, LARGE)
    values(attention, make_case((1, 1, 1, 1, 1), device=device))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_candidate_is_within_budget(quantity: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case((1, 1, 33, 40, 40), torch.bfloat16, device=device)
    turn, competing = 0, {}

    def chosen(kind: str, q: Tensor, n: int, m: int, start: Any) -> dict[str, Any]:
        competing[kind] = _attention_plan.candidates(kind, q, n, m, LARGE)
        return competing[kind][turn % len(competing[kind])]

    for module in LAUNCHERS:
        monkeypatch.setattr(module, "chosen", chosen)
    while turn == 0 or turn < max(map(len, competing.values())):
        assert_parity(quantity, case, output_scale=0.7)
        turn += 1
    assert turn > 3

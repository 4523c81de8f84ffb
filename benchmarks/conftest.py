"""How a benchmark runs: `pytest benchmarks/ --benchmark-only`.

pytest-benchmark times one test after the other. On a machine with other work on it that compares moments, not
contenders. So the first test of a case times all its contenders in turns (`fastscore.testing.timing.race`, after
the numbers were checked), and every test hands its recorded durations to pytest-benchmark through a clock that
replays them. Tables and JSON are pytest-benchmark's own; `extra_info` adds speed-up, traffic, floor and the kernel that
ran, and what it ran on.

    pytest benchmarks/ --benchmark-only --benchmark-json=out/benchmarks.json
    python scripts/benchmark_table.py out/benchmarks.json README.md
    python scripts/plot_benchmarks.py out/benchmarks.json out/benchmarks.png

The tensors are on a GPU where there is one, unless `--device cpu` is given. `--quick` takes five minutes: the first
case of each test, or those that its module names in QUICK, and fewer rounds.

ATEN_CPU_CAPABILITY=avx2 holds every contender to AVX2, for which ONNX Runtime needs a C compiler.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastscore.testing.timing import Case, Result, machine, race

# The compiler's cache does not tell ATEN_CPU_CAPABILITY apart, and code cached for wider vectors computes garbage.
_CACHE = Path(tempfile.gettempdir(), f"fastscore-inductor-{os.getuid()}-{torch.backends.cpu.get_cpu_capability()}")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_CACHE))

if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")  # of torch's convolutions, and of OpenVINO

CONTENDERS = ("eager", "torch.compile", "fastscore")


class ReplayClock:
    """A clock that stands still until a recorded duration is played."""

    __name__ = "ReplayClock"

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def play(self, durations: list[float]) -> Callable[[], None]:
        """A function that takes as long as the next recorded duration, by this clock."""
        remaining = iter(durations)

        def run() -> None:
            self.now += next(remaining, 0.0)

        return run


CLOCK = ReplayClock()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), help="what to measure on; cuda where there is one, else cpu")
    parser.addoption("--quick", action="store_true", help="fewer cases and rounds: five minutes in all")


def pytest_configure(config: pytest.Config) -> None:
    _device(config)  # says at once if there is none of that kind


def _device(config: pytest.Config) -> torch.device:
    name = config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device")
    return torch.device(name)


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the tensors of every case are."""
    return _device(pytestconfig)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))
    # the contenders of a case one after the other, so that no more than one case is held in memory
    places: dict[tuple[Path, str], int] = {}
    items.sort(key=lambda item: places.setdefault((item.path, _case(item)), len(places)))
    if config.getoption("--quick"):
        kept = _quick(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _case(item: pytest.Item) -> str:
    """The name of a test without its contender, which stands first in its brackets."""
    return item.name.replace(f"[{item.callspec.params['contender']}", "[", 1)


def _quick(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of every test, the cases in QUICK of its module, which are parts of ids; else the first one."""
    kept, first = [], {}
    for item in items:
        parts = getattr(item.module, "QUICK", None)
        if parts is None:
            wanted = first.setdefault((item.path, item.originalname), _case(item)) == _case(item)
        else:
            wanted = any(part in item.name for part in parts)
        if wanted:
            kept.append(item)
    return kept


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    machine_info["fastscore"] = machine(_device(config))


def pytest_report_header(config: pytest.Config) -> list[str]:
    found = machine(_device(config))
    lines = ["measured on " + ", ".join(f"{key} {value}" for key, value in found.items())]
    if found["load"] > 0.5:
        lines.append(f"OTHER WORK IS RUNNING (load {found['load']}): do not quote these numbers")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contender" in metafunc.fixturenames:
        metafunc.parametrize("contender", getattr(metafunc.module, "CONTENDERS", CONTENDERS))


@pytest.fixture(scope="session")
def results() -> dict[str, Result]:
    """Case -> what was measured, shared by the tests of its contenders."""
    return {}


@pytest.fixture(scope="session")
def found(pytestconfig: pytest.Config) -> dict[str, str | int | float]:
    """What is measured, and on what."""
    return machine(_device(pytestconfig))


@pytest.fixture
def report(benchmark, results: dict[str, Result], found, pytestconfig) -> Callable[[Case, str], None]:
    """`report(case, contender)` times the case if nobody did yet, and reports one contender to pytest-benchmark."""
    effort = {"seconds": 0.5, "min_rounds": 3} if pytestconfig.getoption("--quick") else {}

    def run(case: Case, contender: str) -> None:
        key = f"{case.op} {case.label}"
        if benchmark.disabled:
            case.check()
            benchmark.pedantic(case.contenders[contender])
            return
        if key not in results:
            torch.manual_seed(0)
            results[key] = race(case, **effort)
        result = results[key]
        durations, traffic = result.seconds[contender], result.traffic[contender]
        benchmark.group = key
        benchmark.extra_info.update(
            op=case.op,
            case=case.label,
            contender=contender,
            about=case.about,
            speedups={other: result.speedup(contender, other) for other in case.contenders if other != contender},
            traffic_in_state_sizes=traffic and traffic.moved,
            operators=traffic and traffic.calls,
            bytes_per_second=result.bandwidth(contender),
            floor_seconds=result.floor if contender == "fastscore" else None,
            kernels=result.launched if contender == "fastscore" else [],
            **found,
        )
        benchmark.pedantic(CLOCK.play(durations), rounds=len(durations), iterations=1)

    return run

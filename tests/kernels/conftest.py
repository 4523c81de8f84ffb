"""The Triton kernels: on the GPU where there is one, else in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class InterpretedFile(pytest.File):
    """A test file that a process with TRITON_INTERPRET=1 runs: Triton looks at it when it is imported."""

    def collect(self) -> Iterator[pytest.Item]:
        yield InterpretedItem.from_parent(self, name="interpreted")
        if "mark.slow" in self.path.read_text(encoding="utf-8"):
            item = InterpretedItem.from_parent(self, name="interpreted slow")
            item.add_marker("slow")
            yield item


class InterpretedItem(pytest.Item):
    """One item for all tests of the file that are slow, one for those that are not."""

    def runtest(self) -> None:
        markers = "slow" if self.get_closest_marker("slow") else "not slow"
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-m", markers]
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
        done = subprocess.run([*command, str(self.path)], env=environment, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{' '.join(command[1:])} {self.path.name}:\n{done.stdout}\n{done.stderr}", pytrace=False)
        self.add_report_section("call", "tests", done.stdout.strip().splitlines()[-1])


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.File | None:
    here = file_path.parent == Path(__file__).parent and file_path.name.startswith("test_")
    if here and file_path.suffix == ".py" and not INTERPRETED and not torch.cuda.is_available():
        return InterpretedFile.from_parent(parent, path=file_path)
    return None


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if module_path.parent == Path(__file__).parent and not INTERPRETED and not torch.cuda.is_available():
        return Nothing.from_parent(parent, path=module_path)
    return None


class Nothing(pytest.Module):
    """In place of the module, which is not imported in this process."""

    def collect(self) -> list[pytest.Item]:
        return []


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def on_triton(device: torch.device) -> Iterator[None]:
    """Every op runs its Triton kernel, and at least one was launched."""
    from fastscore import _backend
    from fastscore.kernels._launch import LAUNCHES

    LAUNCHES.clear()
    with _backend.backend("triton"):
        yield
    assert LAUNCHES.total(), "no Triton kernel ran"

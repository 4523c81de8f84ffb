"""The other tests of this folder once more, in a process that AddressSanitizer watches."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX", "g++")


def library(name: str) -> str | None:
    """The path of a library of the compiler, or None."""
    try:
        said = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return None
    return said if os.path.isabs(said) else None


@pytest.mark.slow
def test_under_address_sanitizer(tmp_path: Path) -> None:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("this is that process")
    # libstdc++ too: AddressSanitizer looks for its __cxa_throw before Python has loaded it.
    libraries = [library("libasan.so"), library("libstdc++.so")]
    if None in libraries:
        pytest.skip(f"{COMPILER} has no libasan.so")
    environment = os.environ | {
        "LD_PRELOAD": " ".join(filter(None, libraries)),
        # Python leaks on purpose; a test sees the error of its launch, and another launch may have the same.
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=0:suppress_equal_pcs=0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE]
    command += ["--basetemp", tmp_path / "base", "--ignore", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    print(done.stdout[-20000:], done.stderr[-20000:])
    assert done.returncode == 0
    assert re.search(r"^\d+ passed(, \d+ deselected)? in ", done.stdout, re.MULTILINE), "some were skipped"

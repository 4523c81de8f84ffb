"""AVX2 for libraries that have no switch: while `avx2_only()` lasts, CPUID tells its thread of no AVX-512."""

import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")


@cache
def library() -> ctypes.CDLL:
    """The compiled source. Raises OSError or subprocess.CalledProcessError where there is no compiler for it."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "avx2_only.so")
        subprocess.run(
            [*compiler, "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(built)], check=True, capture_output=True
        )
        return ctypes.CDLL(str(built))


@contextmanager
def avx2_only() -> Iterator[None]:
    """What is loaded inside, by this thread, takes the processor for one of AVX2.

    Raises:
        RuntimeError: there is no compiler, or Linux cannot do it on this processor.
    """
    try:
        native = library()
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"avx2_only needs a C++ compiler for x86-64 Linux: {error}") from error
    if native.avx2_only_begin():
        raise RuntimeError("avx2_only: this processor or kernel cannot hide CPUID (no cpuid_fault in /proc/cpuinfo)")
    try:
        yield
    finally:
        native.avx2_only_end()

"""CUDA sources compiled by g++ against the headers in include/, and run on the CPU through ctypes."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
# test_sanitized.py runs the tests of this folder once more, in a process that AddressSanitizer watches.
ADDRESS = "libasan" in os.environ.get("LD_PRELOAD", "")
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-unknown-pragmas", f"-I{HERE}/include", f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC}/include"),
]
SANITIZE = ["-fsanitize=undefined,float-cast-overflow", *["-fsanitize=address", "-fsanitize-recover=address"] * ADDRESS]


DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # fastscore::Dtype


class Operand(ctypes.Structure):
    """`Operand` of the argument structures in csrc/include/fastscore: an address, and the stride of the batch."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> "Operand":
        return cls(tensor.data_ptr(), tensor.stride(0))


class ProbeArgs(ctypes.Structure):
    """Arguments of the kernels in probes.cu."""

    _fields_ = (
        *(("in_", ctypes.c_void_p), ("out", ctypes.c_void_p), ("count", ctypes.c_int64)),
        *(("number", ctypes.c_int), ("width", ctypes.c_int)),
        *(("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3)),
    )


class Kernel:
    """The entries of one compiled source.

    `kernel.name(args)` calls the EMULATOR_ENTRY of that name with a structure; RuntimeError tells what went wrong.
    """

    DTYPES = DTYPES
    Operand = Operand

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.emulator_report.restype = ctypes.c_char_p
        self.library.emulator_error_string.restype = ctypes.c_char_p
        self.library.emulator_dynamic_shared.restype = ctypes.c_size_t

    def __getattr__(self, name: str) -> Callable[[ctypes.Structure], None]:
        function = getattr(self.library, name)

        def call(args: ctypes.Structure) -> None:
            error = function(ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)))
            self.check(error)

        return call

    def check(self, error: int) -> None:
        report = self.library.emulator_report().decode()
        if report or error:
            raise RuntimeError(report or f"cudaError {error}: {self.library.emulator_error_string(error).decode()}")

    def dynamic_shared(self) -> int:
        """Bytes of dynamic shared memory that the last launch asked for."""
        return self.library.emulator_dynamic_shared()

    @contextmanager
    def order(self, seed: int) -> Iterator[None]:
        """Blocks and threads have their turn in an order made of the seed."""
        self.library.emulator_set_order(seed)
        try:
            yield
        finally:
            self.library.emulator_set_order(0)

    @contextmanager
    def multiprocessors(self, count: int) -> Iterator[None]:
        """The device has that many: the grid of a kernel whose blocks loop is capped by it."""
        self.library.emulator_set_multiprocessors(count)
        try:
            yield
        finally:
            self.library.emulator_set_multiprocessors(132)


@pytest.fixture(scope="session")
def address_sanitizer() -> bool:
    return ADDRESS


@pytest.fixture(scope="session")
def compile_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Kernel]:
    """`compile_cuda(*sources)`: paths of .cu and .cpp files, relative to the repository, as one `Kernel`."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    folder = tmp_path_factory.mktemp("cuda_emulator")
    known: dict[tuple[str, ...], Kernel] = {}

    def run(*command: str | Path) -> None:
        done = subprocess.run([compiler, *command], stderr=subprocess.PIPE, text=True, env=environment)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(map(str, done.args))}\n{done.stderr}", pytrace=False)

    def to_object(source: Path, flags: list[str]) -> Path:
        target = folder / f"{source.name}.o"
        run(*FLAGS, *flags, "-x", "c++", "-c", source, "-o", target)
        return target

    own = folder / "emulator.cpp"  # as one source: most of the time goes into the headers
    names = ("launch", "barriers", "shared", "runtime", "fiber", "sanitizers")
    own.write_text("".join(f'#include "{name}.cpp"\n' for name in names))
    emulator = to_object(own, [])

    def compile_sources(*sources: str) -> Kernel:
        if sources not in known:
            objects = [to_object(HERE.parents[1] / source, SANITIZE) for source in sources]
            target = folder / f"{len(known)}.so"
            # -z now: a function that nobody emulates shows here, not in the middle of a launch.
            run("-shared", "-Wl,-z,now", *["-fsanitize=address"] * ADDRESS, emulator, *objects, "-o", target)
            known[sources] = Kernel(target)
        return known[sources]

    return compile_sources


@pytest.fixture(scope="session")
def probes(compile_cuda: Callable[..., Kernel]) -> Kernel:
    return compile_cuda("tests/cuda_emulator/probes.cu", "tests/cuda_emulator/probes.cpp")


@pytest.fixture(scope="session")
def probe(probes: Kernel) -> Callable[..., Tensor]:
    """`probe(name, input, output, **more)` runs a kernel of probes.cu and returns the output."""

    def run(name: str, given: Tensor | None, out: Tensor, **more: object) -> Tensor:
        getattr(probes, f"run_{name}")(ProbeArgs(None if given is None else given.data_ptr(), out.data_ptr(), **more))
        return out

    return run

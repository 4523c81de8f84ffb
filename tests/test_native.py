"""The native library: what was built, what it loads, which instruction set runs, and that the sources compile."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastscore import _library

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def python(code: str, **environment: str) -> str:
    """Runs the code in a fresh interpreter and returns what it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------ the library


@native
def test_build_info() -> None:
    info = _library.build_info()
    assert set(info) == {"torch", "isas", "isa", "openmp", "cuda", "cuda_archs"}
    assert torch.__version__.startswith(info["torch"])
    assert info["isa"] in info["isas"]
    assert info["openmp"], "without OpenMP at::parallel_for runs on one thread"
    assert (info["cuda"] is None) == (info["cuda_archs"] is None)


@pytest.fixture(scope="module")
def best_isa() -> int:
    """What torch, which looks for itself, finds on this CPU: 0 baseline, 1 AVX2, 2 AVX-512."""
    said = python("import torch; print(torch.backends.cpu.get_cpu_capability())", ATEN_CPU_CAPABILITY="").strip()
    return {"AVX2": 1, "AVX512": 2}.get(said, 0)


@native
@pytest.mark.parametrize(("capability", "most"), [("default", 0), ("avx2", 1), ("avx512", 2), ("nonsense", 2)])
def test_capability_lowers_the_instruction_set(capability: str, most: int, best_isa: int) -> None:
    isas = ["baseline", "avx2", "avx512"]
    environment = {"ATEN_CPU_CAPABILITY": capability}
    code = "from fastscore import _library; print(_library.build_info()['isa'])"
    assert python(code, **environment).strip() == isas[min(best_isa, most)]


@native
@linux
def test_one_openmp_runtime() -> None:
    code = """
import json, torch, fastscore.ops
torch.set_num_threads(2)
fastscore.ops.linear_step(torch.randn(64, 4096), [], torch.ones(2))
print(json.dumps(sorted({line.split()[-1] for line in open("/proc/self/maps") if "/" in line})))
"""
    loaded = json.loads(python(code))
    runtimes = [path for path in loaded if re.search(r"lib(gomp|iomp|omp)\b", Path(path).name)]
    assert len(runtimes) == 1, runtimes
    assert any("_C.cpython" in path and "fastscore" in path for path in loaded)


@native
@linux
def test_threads_are_those_of_torch() -> None:
    code = """
import os, torch, fastscore.ops
torch.set_num_threads(1)
x, row = torch.randn(64, 65536), torch.ones(2)
torch.add(x, x)
counts = [len(os.listdir("/proc/self/task"))]
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    fastscore.ops.linear_step(x, [], row)
    counts.append(len(os.listdir("/proc/self/task")))
torch.add(x, x)
counts.append(len(os.listdir("/proc/self/task")))
print(*counts)
"""
    alone, one, two, three, torch_too = map(int, python(code, OMP_NUM_THREADS="1").split())
    assert (one, two, three, torch_too) == (alone, alone + 1, alone + 2, alone + 2)


def test_without_the_library_the_reference_runs() -> None:
    code = """
import sys
sys.modules["fastscore._C"] = None  # the import system then says "not found"
import torch
from fastscore import _backend, _library, reference
from fastscore.ops import linear_step, linear_step_
print(_library.NATIVE, _library.build_info(), _backend.available_backends(), _backend.resolve(torch.device("cpu")))
x, row = torch.randn(2, 3), torch.tensor([2.0, 1.0])
arguments = dict(rng=torch.tensor([0, 1]), samples=torch.arange(2))
want = reference.linear_step(x, [], row, **arguments)
assert torch.equal(linear_step(x, [], row, **arguments), want)
assert torch.equal(linear_step_(x, [], row, **arguments), want)
try:
    with _backend.backend("cpu"): pass
except _backend.BackendUnavailableError as error:
    print(error)
"""
    state, message = python(code, FASTSCORE_BACKEND="auto").splitlines()
    assert state == "None {} ('reference',) reference"
    assert message == (
        "backend: 'cpu' is not available: the native library fastscore._C is not built; "
        "build it with `pip install --no-build-isolation -e .` beside your torch"
    )


def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception):
        def load(name: str):
            raise error

        monkeypatch.setattr(_library.importlib, "import_module", load)

    fail(ImportError("undefined symbol: _ZN3c10fooEv"))
    with pytest.raises(
        ImportError, match=r"built against another torch than .* Rebuild it: .* undefined symbol: _ZN3c10fooEv"
    ):
        _library._load()
    fail(ModuleNotFoundError("No module named 'something'", name="something"))
    with pytest.raises(ModuleNotFoundError, match="something"):
        _library._load()
    fail(ModuleNotFoundError("No module named 'fastscore._C'", name="fastscore._C"))
    assert _library._load() == (None, "the native library fastscore._C is not built")


# ------------------------------------------------------------------------------------------------ sources

compiler = shutil.which(os.environ.get("CXX", "c++"))
compiles = pytest.mark.skipif(compiler is None, reason="no C++ compiler")


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(CSRC.glob("cpu/simd/*.cpp")), ids=lambda path: path.stem)
def test_instruction_sets_share_no_symbol(source: Path, tmp_path: Path) -> None:
    """A weak symbol outside the namespace of an instruction set is one the linker may take from the AVX-512 copy."""
    names = set()
    for isa in ("baseline", "avx2"):
        flags = ["-mavx2", "-mfma", "-mf16c"] if isa == "avx2" else []
        target = tmp_path / f"{isa}.o"
        command = [compiler, "-std=c++20", "-O1", *flags, f"-DFASTSCORE_ISA={isa}", f"-I{CSRC}", f"-I{CSRC}/include"]
        subprocess.run([*command, "-Wno-psabi", "-c", source, "-o", target], check=True)
        listed = subprocess.run(
            ["nm", "-C", "--defined-only", target], capture_output=True, text=True, check=True
        ).stdout
        symbols = [line.split(maxsplit=2)[1:] for line in listed.splitlines()]
        shared = [name for kind, name in symbols if kind in "TWVu" and f"fastscore::{isa}::" not in name]
        assert not shared, f"{isa}: {shared}"
        names |= {name for kind, name in symbols if kind == "T"}
    assert len(names) >= 2, "each instruction set defines its kernel"


@pytest.mark.parametrize("source", sorted(CSRC.rglob("simd/*.[ch]*")), ids=lambda path: path.name)
def test_simd_sources_include_no_library_code(source: Path) -> None:
    included = re.findall(r'#include [<"]([^>"]+)[>"]', source.read_text())
    included = [name for name in included if not (source.parent / name).exists()]
    assert {name for name in included if "/" not in name} <= {"cstdint", "cstddef", "immintrin.h"}
    assert {name.split("/")[0] for name in included if "/" in name} <= {"cpu", "fastscore"}


def nvcc() -> str | None:
    candidates = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    return next((path for home in candidates if (path := shutil.which(f"{home}/bin/nvcc"))), shutil.which("nvcc"))


@pytest.mark.skipif(nvcc() is None, reason="no nvcc: the CUDA sources are not compiled here")
@pytest.mark.parametrize("source", sorted(CSRC.glob("cuda/*.cu")), ids=lambda path: path.stem)
def test_cuda_sources_know_no_torch(source: Path) -> None:
    """They compile in seconds, and in the emulator; scripts/compile_kernels.py compiles them."""
    command = [nvcc(), "-std=c++20", f"-I{CSRC}", f"-I{CSRC}/include", "-M", source]
    headers = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "cuda/device.h" in headers
    assert not re.search(r"\b(torch|ATen|c10)/", headers)

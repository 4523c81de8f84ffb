"""The native library: what was built, what it loads, which instruction set runs, and the code meant for GPUs."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastscore import _library, reference
from fastscore.reference.philox import philox_normal, philox_words
from fastscore.testing.inputs import make_input

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
def test_cuda_sources_compile_without_torch(source: Path, tmp_path: Path) -> None:
    archs = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90, 100, 120)]
    target = tmp_path / "kernel.o"
    includes = [f"-I{CSRC}", f"-I{CSRC}/include"]
    command = [nvcc(), "-std=c++20", "-O3", "-Werror", "all-warnings", *archs, *includes, "-MMD", "-MF", f"{target}.d"]
    # The limit is generous; it is there because a torch header would turn seconds into minutes.
    subprocess.run([*command, "-c", source, "-o", target], check=True, timeout=120)
    headers = Path(f"{target}.d").read_text()
    assert f"{source.stem}.h" in headers
    assert not re.search(r"\b(torch|ATen|c10)/", headers)


@pytest.fixture(scope="module")
def device_code(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The per-thread code of the CUDA kernels, for the host."""
    if compiler is None:
        pytest.skip("no C++ compiler")
    target = tmp_path_factory.mktemp("device_code") / "device_code.so"
    source = ROOT / "tests" / "device_code.cpp"
    command = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{CSRC}/include"]
    subprocess.run([*command, source, "-o", target], check=True)
    return ctypes.CDLL(str(target))


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def test_device_philox(device_code: ctypes.CDLL) -> None:
    words, z32, z64 = (ctypes.c_uint32 * 4)(), (ctypes.c_float * 4)(), (ctypes.c_double * 4)()
    worst = {torch.float32: 0.0, torch.float64: 0.0}
    for seed, draw, sample in ((0, 0, 0), (2**63 - 1, 2**32 - 1, 2**40 + 5), (-1, 7, -3), (12345, 1, 2)):
        exact_words = philox_words(seed, draw, sample, torch.arange(500))
        rng, samples = torch.tensor([seed, draw]), torch.tensor([sample])
        exact = philox_normal((1, 2000), rng, samples, torch.float64).view(500, 4)
        for block in range(500):
            arguments = ctypes.c_int64(seed), ctypes.c_uint32(draw), ctypes.c_int64(sample), ctypes.c_uint32(block)
            device_code.philox_block(*arguments, words, z32, z64)
            assert list(words) == exact_words[block].tolist()
            for dtype, z in ((torch.float32, z32), (torch.float64, z64)):
                ulp = torch.finfo(dtype).eps * 2.0 ** exact[block].abs().log2().floor()
                error = (torch.tensor(list(z), dtype=torch.float64) - exact[block]).abs() / ulp
                worst[dtype] = max(worst[dtype], float(error.max()))
    print(worst)
    assert max(worst.values()) <= 4  # what fastscore.noise promises


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 1, 7, 9), (2, 3, 5, 7), (2, 4, 4, 8)])
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_device_linear_step(
    device_code: ctypes.CDLL, shape: tuple[int, ...], layout: str, dtype: torch.dtype, noise: str
) -> None:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, *history = (make_input(shape, layout, dtype=dtype, seed=k) for k in range(3))
    rows = make_input((shape[0], 4), dtype=real, seed=8)
    rows[-1, -1] = 0
    rng, samples = torch.tensor([77, 3]), torch.arange(shape[0]) + 5
    z = make_input(shape, layout, dtype=dtype, seed=9) if noise == "given" else None
    keywords = {"noise": z} if noise == "given" else {"rng": rng, "samples": samples}
    out = torch.full_like(x, float("nan"))
    terms = [*history, z] if z is not None else history
    channels = shape[1] if layout == "channels_last" else 1
    vectors = device_code.linear_step(
        {torch.float32: 0, torch.float64: 1}.get(dtype, 2),
        pointer(out), pointer(x), ctypes.c_int64(x.stride(0)),
        (ctypes.c_void_p * len(terms))(*(t.data_ptr() for t in terms)), len(terms), int(z is not None),
        pointer(rows), ctypes.c_int64(rows.stride(0)), 4,
        pointer(None if z is not None else rng), pointer(None if z is not None else samples),
        ctypes.c_int64(shape[0]), ctypes.c_int64(x[0].numel() // channels), ctypes.c_int64(channels),
    )  # fmt: skip
    assert bool(vectors) == (channels == 1 and x[0].numel() % (8 if dtype == torch.bfloat16 else 4) == 0)
    exact = reference.linear_step(x.to(real), [h.to(real) for h in history], rows, **{
        name: value.to(real) if value.is_floating_point() else value for name, value in keywords.items()
    })  # fmt: skip
    # Coefficients and values are of order one; 16 roundings are more than the sum of four products and a normal makes.
    step = torch.finfo(real).eps
    torch.testing.assert_close(
        out.to(real), exact.to(dtype).to(real), rtol=max(torch.finfo(dtype).eps, 16 * step), atol=16 * step
    )

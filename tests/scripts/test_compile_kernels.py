"""scripts/compile_kernels.py: what it reads from the compilers, what it refuses, and that no kernel has a fault."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on PATH")
pytest.importorskip("triton")

import compile_kernels  # noqa: E402
from kernel_specimens import KNOWN, TRITON_SPECIMENS, Specimen  # noqa: E402


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "share"),
    [
        ("sm_90", 256, 32, 0, 1.0),
        ("sm_90", 256, 33, 0, 0.75),  # 40 after rounding: 6 blocks of 8 warps
        ("sm_90", 256, 64, 0, 0.5),
        ("sm_90", 256, 255, 0, 0.125),
        ("sm_80", 128, 32, 81 * 1024, 8 / 64),  # two blocks fit
        ("sm_120", 256, 32, 0, 1.0),
        ("gfx942", 256, 64, 0, 1.0),
        ("gfx942", 256, 128, 0, 0.5),
    ],
)
def test_occupancy_is_that_of_the_tables(target, threads, registers, shared, share):
    assert compile_kernels.TARGETS[target].occupancy(threads, registers, shared) == pytest.approx(share)


SPILLING = """
__global__ void spilling(float* x, int n) {
  float v[200];
  for (int i = 0; i < 200; ++i) v[i] = x[i * n + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int j = 0; j < 200; ++j)
    #pragma unroll
    for (int i = 0; i < 200; ++i) v[i] += v[(i + j) % 200] * v[j];
  for (int i = 0; i < 200; ++i) x[i * n + threadIdx.x] = v[i];
}
"""
WIDE = "__global__ void wide(float4* x) { x[threadIdx.x].x += 1; float4 v = x[threadIdx.x + 32]; x[threadIdx.x] = v; }"
NARROW = "__global__ void narrow(float* x) { x[threadIdx.x] += 1; }"


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("spilling", SPILLING.replace("void spilling", "void __launch_bounds__(1024, 2) spilling"), "spills"),
        ("wide", WIDE, ""),
        ("narrow", NARROW, "loads of 4 bytes, stores of 4 bytes"),
    ],
)
def test_faults_of_cuda_kernels_are_found(name, source, fault, tmp_path, monkeypatch):
    file = tmp_path / f"{name}.cu"
    file.write_text(source)
    monkeypatch.setattr(compile_kernels, "CUDA_SPECIMENS", {name: Specimen(name, threads=32)})
    (report,) = compile_kernels.cuda_reports(file, compile_kernels.TARGETS["sm_90"])
    assert report.kernel == name
    faults = ", ".join(report.faults())
    assert (fault in faults) if fault else not faults


def test_dynamic_shared_memory_limits_the_occupancy(tmp_path, monkeypatch):
    file = tmp_path / "wide.cu"
    file.write_text(WIDE)
    monkeypatch.setattr(compile_kernels, "CUDA_SPECIMENS", {"wide": Specimen("of 100 KiB", threads=32, shared=102400)})
    (report,) = compile_kernels.cuda_reports(file, compile_kernels.TARGETS["sm_90"])
    assert (report.shared, report.call) == (102400, "wide of 100 KiB")
    assert report.occupancy == 2 / 64  # two blocks of a warp
    assert report.faults() == ["occupancy 3%"]


def test_a_kernel_that_nobody_describes_is_an_error(tmp_path, monkeypatch):
    file = tmp_path / "narrow.cu"
    file.write_text(NARROW)
    monkeypatch.setattr(compile_kernels, "CUDA_SPECIMENS", {})
    with pytest.raises(SystemExit, match=r"says nothing of narrow in narrow\.cu"):
        list(compile_kernels.cuda_reports(file, compile_kernels.TARGETS["sm_90"]))


def test_every_triton_kernel_has_a_specimen():
    """The calls start every kernel that is in kernels/."""
    import triton

    started = {launch[0].__name__ for specimen in TRITON_SPECIMENS for launch in compile_kernels.recorded(specimen)}
    written = set()
    for path in (ROOT / "kernels").glob("*.py"):
        module = __import__(f"fastscore.kernels.{path.stem}", fromlist=["_"])
        own = (value for value in vars(module).values() if isinstance(value, triton.runtime.jit.JITFunction))
        written |= {f.__name__ for f in own if f.__name__.endswith("_kernel") and f.__module__ == module.__name__}
    assert started == written


@pytest.mark.slow
def test_no_triton_kernel_has_a_new_fault(tmp_path):
    """For one target; `--all` takes the others. A known fault that is gone has to go from the list."""
    table = tmp_path / "kernels.md"
    command = [sys.executable, str(ROOT / "scripts" / "compile_kernels.py"), "--no-cuda", "--markdown", str(table)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = len(table.read_text().splitlines()) - 2
    assert f"{kernels} kernels compiled, {len(KNOWN)} with faults, {len(KNOWN)} of them known" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stem", sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")))
def test_no_cuda_kernel_has_a_fault(stem):
    source = ROOT / f"csrc/cuda/{stem}.cu"
    reports = list(compile_kernels.cuda_reports(source, compile_kernels.TARGETS["sm_90"]))
    assert bool(reports) == ("__global__" in source.read_text())
    assert not [(report.kernel, report.faults()) for report in reports if report.faults()]

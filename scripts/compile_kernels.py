"""Compiles every GPU kernel for real targets on any machine, and reports what the compilers say about it.

    python scripts/compile_kernels.py                            # sm_90
    python scripts/compile_kernels.py --target sm_80 gfx942      # others: sm_80 sm_89 sm_90 sm_100 sm_120 gfx942
    python scripts/compile_kernels.py --all --markdown out/kernels.md --readme README.md

Triton kernels are those that the launchers in kernels/ start for the calls of kernel_specimens.py, compiled by Triton
for its target; CUDA C++ is what nvcc makes of csrc/cuda/*.cu. No GPU is needed, and nothing is run on one. Fails for a
kernel that spills registers; for one bound by memory that can fill less than half of a multiprocessor; and for a
vectorized path whose global access is not 16 bytes wide.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch._subclasses import FakeTensorMode
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction, MockTensor

from benchmark_table import replace
from kernel_specimens import (
    CUDA_SPECIMENS,
    KNOWN,
    NUMBERS,
    SECOND_STAGES,
    TRITON_SPECIMENS,
    WITHOUT_PRODUCTS,
    Specimen,
)

ROOT = Path(__file__).resolve().parents[1]
LEAST_OCCUPANCY = 0.5
BEGIN, END = "<!-- compiled:begin -->", "<!-- compiled:end -->"


@dataclass(frozen=True)
class Target:
    """A GPU as far as occupancy goes.

    Attributes:
        warp: threads of a warp.
        warps, blocks: at most resident on a multiprocessor (compute unit).
        registers: 32-bit registers of a multiprocessor, for all threads.
        granularity: registers of a warp are allocated in multiples of this many.
        shared: bytes of shared memory of a multiprocessor.
        reserved: bytes of it that every block costs in addition.
    """

    name: str
    warp: int
    warps: int
    blocks: int
    registers: int
    granularity: int
    shared: int
    reserved: int

    @property
    def gpu(self) -> GPUTarget:
        """The target as Triton names it."""
        if self.name.startswith("sm_"):
            return GPUTarget("cuda", int(self.name[3:]), 32)
        return GPUTarget("hip", self.name, self.warp)

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """Share of the warps that can be resident at once, by threads, registers and shared memory of a block."""
        warps = -(-threads // self.warp)
        per_warp = -(-max(registers, 1) * self.warp // self.granularity) * self.granularity
        resident = min(
            self.blocks,
            self.warps // warps,
            self.registers // per_warp // warps,
            self.shared // (shared + self.reserved) if shared + self.reserved else self.blocks,
        )
        return resident * warps / self.warps


# CUDA C++ Programming Guide, tables of compute capabilities; CDNA 3 ISA (4 SIMDs of 512 x 64 registers, 8 waves each).
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", 32, 64, 32, 65536, 256, 164 * 1024, 1024),
        Target("sm_89", 32, 48, 24, 65536, 256, 100 * 1024, 1024),
        Target("sm_90", 32, 64, 32, 65536, 256, 228 * 1024, 1024),
        Target("sm_100", 32, 64, 32, 65536, 256, 228 * 1024, 1024),
        Target("sm_120", 32, 48, 24, 65536, 256, 100 * 1024, 1024),
        Target("gfx942", 64, 32, 32, 4 * 512 * 64, 8 * 64, 64 * 1024, 0),
    )
}


@dataclass(frozen=True)
class Report:
    """What a compiler says of a kernel.

    Attributes:
        kernel, call: its name, and the call that it was compiled for.
        specimen: what is asked of it.
        registers, spills, shared: 32-bit registers of a thread, bytes it spills, bytes of shared memory of a block.
        occupancy: see `Target.occupancy`.
        loads, stores: bytes of the widest global load and store.
        tensor_core: how many tensor-core instructions there are.
    """

    kernel: str
    call: str
    target: str
    specimen: Specimen
    registers: int
    spills: int
    shared: int
    occupancy: float
    loads: int
    stores: int
    tensor_core: int

    def widths(self) -> list[tuple[str, int]]:
        """The widest loads and stores, of those that are asked to be wide."""
        name = self.kernel.split("<")[0]
        if not self.specimen.vector or self.kernel in SECOND_STAGES:
            return []
        both = (("loads", self.loads), ("stores", self.stores))
        return [(kind, width) for kind, width in both if width and (name, kind) not in NUMBERS]

    def faults(self) -> list[str]:
        """What is wrong with it; empty where nothing is."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.kernel in SECOND_STAGES:
            return found
        if self.specimen.memory_bound and self.occupancy < LEAST_OCCUPANCY:
            found.append(f"occupancy {self.occupancy:.0%}")
        found += [f"{kind} of {width} bytes" for kind, width in self.widths() if width < 16]
        if self.specimen.tensor_core and not self.tensor_core and self.kernel not in WITHOUT_PRODUCTS:
            found.append("no tensor-core instruction")
        return found


# ------------------------------------------------------------------------------------------------ Triton


class _Driver:
    """Stands in for a driver of Triton: names a target, and has no device."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self.target, self.device = target, device

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device  # Triton keeps what it has compiled by the number of the device

    def get_current_stream(self, device: int) -> int:
        return 0


def recorded(specimen: Specimen, hip: bool = False) -> list[tuple[JITFunction[Any], tuple[Any, ...], dict[str, Any]]]:
    """The launches (kernel, arguments, options) of a specimen's call on CUDA (or HIP) tensors without a device."""
    launches = []

    def record(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
        launches.append((kernel, args, options))

    modules = [importlib.import_module(f"fastscore.kernels.{path.stem}") for path in (ROOT / "kernels").glob("*.py")]
    users = [module for module in modules if hasattr(module, "launch") and not module.__name__.endswith("._launch")]
    before = [module.launch for module in users]
    for module in users:
        module.launch = record  # type: ignore[attr-defined]
    try:
        # launchers ask it for the threads of a warp, and for the options that there are
        with patch.object(torch.version, "hip", "7.0" if hip else None), FakeTensorMode():
            specimen.call()
    finally:
        for module, launch in zip(users, before, strict=True):
            module.launch = launch  # type: ignore[attr-defined]
    return launches


def compiled(
    target: Target, kernel: JITFunction[Any], args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[dict[str, Any], int, int]:
    """What Triton makes of a launch: its files by kind, the threads of a program, and its bytes of shared memory."""

    def mock(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return MockTensor(value.dtype, tuple(value.shape))
        return tuple(mock(v) for v in value) if isinstance(value, tuple) else value

    number = 1000 + list(TARGETS).index(target.name)
    triton.runtime.driver.set_active(_Driver(target.gpu, number))
    done = kernel.warmup(*(mock(arg) for arg in args), grid=(1,), **options)
    return done.asm, done.metadata.num_warps * target.warp, done.metadata.shared


def triton_reports(specimen: Specimen, target: Target) -> Iterator[Report]:
    """One report for every kernel that a call starts."""
    for kernel, args, options in recorded(specimen, target.gpu.backend == "hip"):
        asm, threads, shared = compiled(target, kernel, args, options)
        found = _ptx(asm["ptx"], target) if "ptx" in asm else _amdgcn(asm["amdgcn"])
        found["shared"] = max(found["shared"], shared)
        yield _report(kernel.__name__, specimen, target, threads, found)


def _amdgcn(text: str) -> dict[str, Any]:
    def number(name: str) -> int:
        return max((int(value) for value in re.findall(rf"\.{name}:\s+(\d+)", text)), default=0)

    widths = {"dwordx4": 16, "dwordx2": 8, "dword": 4, "ushort": 2, "short": 2, "b128": 16, "b64": 8, "b32": 4}
    access: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, width in re.findall(r"(?:global|buffer|flat)_(load|store)_([a-z0-9]+)", text):
        access[kind][widths.get(width, 1)] += 1
    return {
        "registers": number("vgpr_count"),
        "spills": 4 * (number("vgpr_spill_count") + number("sgpr_spill_count")),
        "shared": number("group_segment_fixed_size"),
        "load": access["load"],
        "store": access["store"],
        "tensor_core": len(re.findall(r"v_mfma_", text)),
    }


# ------------------------------------------------------------------------------------------------ CUDA C++


def cuda_reports(source: Path, target: Target) -> Iterator[Report]:
    """One report for every kernel of a .cu file that kernel_specimens.py names."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("compile_kernels.py: nvcc was not found on PATH; install the CUDA toolkit, or give --no-cuda")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        flags = [
            "-std=c++20",
            "-O3",
            "-Werror=all-warnings",
            f"-arch={target.name}",
            f"-I{ROOT}/csrc",
            f"-I{ROOT}/csrc/include",
        ]
        found = _assembled([nvcc, *flags, "-Xptxas=-v", "-cubin", str(source), "-o", str(cubin)], cubin)
    for symbol, values in found.items():
        name = _demangled(symbol)
        for pattern, specimen in CUDA_SPECIMENS.items():
            if re.search(pattern, name):
                values["shared"] += specimen.shared
                named = with_changes(specimen, name=f"{source.stem} {specimen.name}")
                yield _report(name, named, target, specimen.threads, values)
                break
        else:
            raise SystemExit(f"compile_kernels.py: kernel_specimens.py says nothing of {name} in {source.name}")


def _demangled(symbol: str) -> str:
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    name = name.replace("(anonymous namespace)::", "").replace("fastscore::cuda::", "").replace("fastscore::", "")
    name = re.sub(r"\([\w:]+\)(?=\d)", "", name)  # enumerators print as "(Type)0"
    return re.sub(r"^void ", "", name).split("(")[0]


def _tool(name: str) -> str:
    """A tool of the CUDA toolkit as Triton brings it."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _ptx(text: str, target: Target) -> dict[str, Any]:
    """Resources and instructions of the one kernel of a PTX text of Triton."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(text)
        assembler = "ptxas" if int(target.name[3:]) < 100 else "ptxas-blackwell"
        arch = re.search(r"^\.target (\w+)", text, re.MULTILINE)[1]  # type: ignore[index]
        ((_, found),) = _assembled(
            [_tool(assembler), "-v", f"--gpu-name={arch}", str(source), "-o", str(cubin)], cubin
        ).items()
    return found


def _assembled(command: list[str], cubin: Path) -> dict[str, dict[str, Any]]:
    """Resources and instructions of the kernels that a command with a verbose ptxas writes to `cubin`, by symbol."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"compile_kernels.py: {' '.join(command)}:\n{done.stderr}")
    said = done.stderr
    command = [_tool("cuobjdump"), "-sass", str(cubin)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, Any]] = {}
    for part in said.split("Compiling entry function '")[1:]:
        spilled = [int(number) for number in re.findall(r"(\d+) bytes spill", part)]
        shared = re.search(r"(\d+) bytes smem", part)
        found[part.split("'")[0]] = {
            "registers": int(re.search(r"Used (\d+) registers", part)[1]),  # type: ignore[index]
            "spills": sum(spilled),
            "shared": int(shared[1]) if shared else 0,
        }
    for section in sass.split("Function : ")[1:]:
        values = found[section.split(None, 1)[0]]
        for kind, instruction in (("load", "LDG"), ("store", "STG")):
            widths = re.findall(rf"\b{instruction}\.E((?:\.\w+)*)", section)
            values[kind] = Counter(_width(modifiers) for modifiers in widths)
        values["tensor_core"] = len(re.findall(r"\b(?:[HIDQO]MMA|[HQ]GMMA|UTC[HQO]MMA)\b", section))
    return found


def _width(modifiers: str) -> int:
    for text, width in ((".256", 32), (".128", 16), (".64", 8), (".U8", 1), (".S8", 1), (".U16", 2), (".S16", 2)):
        if text in modifiers:
            return width
    return 4


# ------------------------------------------------------------------------------------------------ reports


def _report(name: str, specimen: Specimen, target: Target, threads: int, found: dict[str, Any]) -> Report:
    return Report(
        kernel=name,
        call=specimen.name,
        target=target.name,
        specimen=specimen,
        registers=found["registers"],
        spills=found["spills"],
        shared=found["shared"],
        occupancy=target.occupancy(threads, found["registers"], found["shared"]),
        loads=max(found["load"], default=0),
        stores=max(found["store"], default=0),
        tensor_core=found["tensor_core"],
    )


def markdown(reports: list[Report]) -> str:
    """A table, one row per kernel, call and target."""
    lines = [
        "| kernel | call | target | registers | spills | shared | occupancy | load | store | tensor cores |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in reports:
        lines.append(
            f"| `{r.kernel}` | {r.call} | {r.target} | {r.registers} | {r.spills} | {r.shared} | {r.occupancy:.0%} | "
            f"{r.loads} B | {r.stores} B | {r.tensor_core or ''} |"
        )
    return "\n".join(lines) + "\n"


def summary(reports: list[Report]) -> str:
    """A table, one row per op and language: the worst of its kernels over all targets."""
    groups: dict[tuple[str, str], list[Report]] = {}
    for report in reports:
        language = "CUDA C++" if report.kernel.endswith(">") or "<" in report.kernel else "Triton"
        groups.setdefault((report.call.split()[0].rstrip(","), language), []).append(report)
    lines = [
        "| op | kernels of | targets | compiled | registers | spills | least occupancy | narrowest vectorized access |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (op, language), found in sorted(groups.items()):
        bound = [r.occupancy for r in found if r.specimen.memory_bound and r.kernel not in SECOND_STAGES]
        wide = [width for r in found for _, width in r.widths()]
        registers = sorted(r.registers for r in found)
        targets = ", ".join(name for name in TARGETS if any(r.target == name for r in found))
        lines.append(
            f"| `{op}` | {language} | {targets} | {len(found)} | {registers[0]}–{registers[-1]} | "
            f"{sum(r.spills for r in found)} | {f'{min(bound):.0%}' if bound else 'bound by products'} | "
            f"{f'{min(wide)} bytes' if wide else '-'} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Compile, report, and say what is wrong."""
    parser = argparse.ArgumentParser(description="Compile every GPU kernel, without a GPU, and report on it.")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=["sm_90"], help="GPUs to compile for")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--only", default="", help="only calls and files whose name contains this")
    parser.add_argument("--no-cuda", action="store_true", help="leave out csrc/cuda")
    parser.add_argument("--no-triton", action="store_true", help="leave out kernels/")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--readme", type=Path, help="write a summary between the markers of this file")
    options = parser.parse_args(arguments)
    targets = [TARGETS[name] for name in (TARGETS if options.all else options.target)]
    jobs: list[Any] = []
    if not options.no_triton:
        jobs += [(triton_reports, s) for s in TRITON_SPECIMENS if options.only in s.name]
    if not options.no_cuda:
        jobs += [
            (cuda_reports, path) for path in sorted((ROOT / "csrc/cuda").glob("*.cu")) if options.only in path.stem
        ]
    work = [(job, what, t) for job, what in jobs for t in targets if job is triton_reports or t.name.startswith("sm_")]
    reports: list[Report] = []
    for job, what, target in tqdm(work, unit="compilation", disable=None):
        reports += job(what, target)
    table = markdown(reports)
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.markdown.with_suffix(".tmp")
        temporary.write_text(table)
        temporary.replace(options.markdown)
    print(table)
    if options.readme:
        options.readme.write_text(replace(options.readme.read_text(), summary(reports), BEGIN, END))
    wrong = [(report, ", ".join(report.faults())) for report in reports if report.faults()]
    new = [(r, faults) for r, faults in wrong if r.target != "sm_90" or KNOWN.get((r.kernel, r.call)) != faults]
    for report, faults in new:
        print(f"{report.kernel}, {report.call}, {report.target}: {faults}", file=sys.stderr)
    print(f"{len(reports)} kernels compiled, {len(wrong)} with faults, {len(wrong) - len(new)} of them known")
    return 1 if new else 0


if __name__ == "__main__":
    raise SystemExit(main())

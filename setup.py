"""Builds the one extension `fastscore._C`: C++ for the CPU always, CUDA where torch and a toolkit both have it.

FASTSCORE_BUILD_EXT   1 (default) | 0            0 installs the Python package alone; every op then runs its reference
FASTSCORE_BUILD_CUDA  auto (default) | 1 | 0     1 turns a missing toolkit into an error; GPUs are not asked for
TORCH_CUDA_ARCH_LIST  "8.0;9.0+PTX"              default: the GPUs of this machine, else 8.0;9.0;10.0;12.0+PTX
CUDA_HOME             the toolkit, if the one found is not the one wanted
MAX_JOBS              compilers at a time

csrc/cpu/simd/*.cpp is compiled once per instruction set and csrc/cuda/*.cu by nvcc, in a ninja file written here, since
that of torch has one set of flags for all files. The remaining sources go through torch's BuildExtension.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}
# -ffp-contract=off: what is fused is written out, so that whole vectors and tails round alike.
SIMD_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]
# -fopenmp compiles at::parallel_for in; nothing links an OpenMP library, so its symbols are those of torch's own.
CXX_FLAGS = ["-std=c++20", "-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-fopenmp"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0;12.0+PTX"


def packages():
    """`kernels/` installs as `fastscore.kernels`; the alias package of the source tree is left out."""
    own = find_packages(include=["fastscore", "fastscore.*"], exclude=["fastscore.kernels*"])
    return [*own, "fastscore.kernels", *(f"fastscore.kernels.{name}" for name in find_packages("kernels"))]


def relative(paths):
    return sorted(str(path.relative_to(ROOT)) for path in paths)


# ---------------------------------------------------------------------------------------------------- CUDA


def find_toolkit():
    """The folder that holds bin/nvcc and the runtime header, or None and where was looked."""
    candidates = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parents[1])
        # `nvcc` may be a wrapper script: the compiler itself knows where it is.
        plan = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
        if top := re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE):
            candidates.append(Path(top[1].strip()).resolve())
    candidates.append("/usr/local/cuda")
    tried = []
    for candidate in dict.fromkeys(Path(c) for c in candidates if c):
        missing = [name for name in ("bin/nvcc", "include/cuda_runtime_api.h") if not (candidate / name).exists()]
        if not missing:
            return candidate, ""
        tried.append(f"{candidate} has no {' and no '.join(missing)}")
    return None, "; ".join(tried)


def find_cuda(torch):
    """The toolkit to build with, or None; a SystemExit where FASTSCORE_BUILD_CUDA=1 cannot be had."""
    mode = os.environ.get("FASTSCORE_BUILD_CUDA", "auto").lower()
    if mode not in {"auto", "0", "1"}:
        raise SystemExit(f"FASTSCORE_BUILD_CUDA must be auto, 0 or 1, got {mode!r}")
    if mode == "0":
        return None
    toolkit, tried = find_toolkit()
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    if toolkit is None:
        missing.append(f"no CUDA toolkit was found ({tried}); set CUDA_HOME")
    elif torch.version.cuda is not None:
        answer = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release (\d+)\.(\d+)", answer)
        if release is None or release[1] != torch.version.cuda.split(".")[0]:
            found = f"{release[1]}.{release[2]}" if release else "of unknown version"
            missing.append(f"the toolkit {toolkit} is {found}, but torch was built with CUDA {torch.version.cuda}")
    if not missing:
        return toolkit
    if mode == "1":
        raise SystemExit("FASTSCORE_BUILD_CUDA=1, but " + " and ".join(missing))
    print("fastscore: building without CUDA kernels: " + "; ".join(missing), file=sys.stderr)
    return None


def cuda_archs(torch):
    """Architectures to compile for, such as ["8.0", "9.0+PTX"]."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        archs = listed.replace(" ", ";").split(";")
    elif count := torch.cuda.device_count():
        archs = sorted({"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(count)})
    else:
        archs = DEFAULT_CUDA_ARCHS.split(";")
    archs = [arch for arch in archs if arch]
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must name architectures like 8.0 or 9.0a+PTX, got {arch!r}")
    return archs


def gencode(archs):
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


# ---------------------------------------------------------------------------------------------------- objects


def check_compiler(compiler):
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise SystemExit(
            f"fastscore is built with GCC (11 or newer), but {compiler[0]!r} was not found; set CXX"
        ) from None
    if "clang" in version:  # its OpenMP code calls a runtime that torch does not bring, and two in a process do not mix
        raise SystemExit(f"fastscore is built with GCC (11 or newer), but {compiler[0]!r} is clang; set CXX=g++")


def compile_objects(folder, compiler, toolkit, archs):
    """Compiles what has flags of its own, where it changed; returns the object files."""
    machine = platform.machine().lower()
    isas = ISA_FLAGS if machine in {"x86_64", "amd64"} else {"baseline": []}
    includes = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    rules, objects = ["ninja_required_version = 1.3"], []

    def rule(name, command, sources):
        command = shlex.join([*command, *includes]).replace("$", "$$") + " -MMD -MF $out.d -c $in -o $out"
        rules.extend([f"rule {name}", f"  command = {command}", "  depfile = $out.d", "  deps = gcc"])
        for source in sources:
            target = folder / name / f"{source.stem}.o"
            rules.append(f"build {ninja_path(target)}: {name} {ninja_path(source)}")
            objects.append(str(target))

    for isa, flags in isas.items():
        command = [*compiler, *SIMD_FLAGS, *flags, f"-DFASTSCORE_ISA={isa}"]
        rule(isa, command, sorted((CSRC / "cpu/simd").glob("*.cpp")))
    if toolkit:
        command = [str(toolkit / "bin/nvcc"), *NVCC_FLAGS, *gencode(archs)]
        rule("cuda", command, sorted((CSRC / "cuda").glob("*.cu")))

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(rules) + "\n")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if subprocess.run(["ninja", "-C", folder, *jobs]).returncode != 0:
        raise SystemExit(
            f"fastscore: compiling the kernels failed (see above; the commands are in {folder}/build.ninja)"
        )
    return objects


def ninja_path(path):
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def extension():
    if os.environ.get("FASTSCORE_BUILD_EXT", "1") == "0":
        return {}
    if not sys.platform.startswith("linux"):
        print("fastscore: kernels are built on Linux only; here every op runs its reference", file=sys.stderr)
        return {}
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            "fastscore builds against the torch you use: install torch first, "
            "then `pip install --no-build-isolation -e .`"
        ) from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
        raise SystemExit(f"fastscore needs torch 2.9 or newer, found {torch.__version__}")
    # ninja may lie in an environment that was not activated.
    os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    check_compiler(compiler)
    if not shutil.which("ninja"):
        raise SystemExit("fastscore is built with ninja, which was not found: pip install ninja")
    toolkit = find_cuda(torch)
    if toolkit:
        os.environ["CUDA_HOME"] = str(toolkit)  # torch's own guess stops at a wrapper script
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    archs = cuda_archs(torch) if toolkit else []

    class Build(BuildExtension):
        def build_extensions(self):
            (ext,) = self.extensions
            ext.extra_objects = compile_objects(Path(self.build_temp).resolve() / "objects", compiler, toolkit, archs)
            ext.depends = [*ext.depends, *ext.extra_objects]
            super().build_extensions()

    ext = CppExtension(
        "fastscore._C",
        relative([*CSRC.glob("*.cpp"), *(CSRC / "cpu").glob("*.cpp")]),
        include_dirs=[str(CSRC), str(CSRC / "include")],
        depends=relative(CSRC.rglob("*.h")),
        extra_compile_args=CXX_FLAGS,
        extra_link_args=["-Wl,--exclude-libs,ALL", "-s"],
    )
    if toolkit:
        ext.include_dirs.append(str(toolkit / "include"))
        ext.library_dirs.append(str(toolkit / "lib64"))
        ext.libraries += ["c10_cuda", "cudart"]
        ext.define_macros += [
            ("FASTSCORE_WITH_CUDA", None),
            ("FASTSCORE_CUDA_VERSION", f'"{torch.version.cuda}"'),
            ("FASTSCORE_CUDA_ARCHS", f'"{";".join(archs)}"'),
        ]
    return {"ext_modules": [ext], "cmdclass": {"build_ext": Build}}


if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"fastscore needs setuptools >= 77, found {setuptools.__version__}: pip install -U setuptools wheel ninja"
    )
setup(
    packages=packages(),
    package_dir={"fastscore.kernels": "kernels"},
    include_package_data=False,  # else MANIFEST.in, which is for source archives, puts the alias over the package
    **extension(),
)

"""What is installed: the contents of the wheel, `kernels/` as `fastscore.kernels`; what setup.py decides and says."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fastscore

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a source checkout")


def copy_of_the_sources(folder: Path) -> Path:
    """The checkout without what builds and runs leave in it."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.so", "__pycache__", "*.egg-info", "tests")
    return Path(shutil.copytree(ROOT, folder, ignore=ignored))


def pip(python: str | Path, *arguments: str | Path, **environment: str) -> str:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    # No index: a build that wants to download anything fails.
    done = subprocess.run(command, env=os.environ | {"PIP_NO_INDEX": "1"} | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fresh_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that sees the packages of this one, but not this checkout."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    purelib = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    (Path(purelib) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(python: Path, code: str, folder: Path) -> str:
    """Runs code in `folder`, away from the checkout, and returns what it prints."""
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_wheel_is_right(wheel: Path, sources: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"fastscore-{fastscore.__version__}.dist-info"
        assert {name.split("/")[0] for name in names} == {"fastscore", info}
        assert archive.read(f"{info}/top_level.txt").decode().split() == ["fastscore"]
        # The package of the wheel is the top-level folder, not the alias that stands in for it in a checkout.
        for path in (sources / "kernels").rglob("*.py"):
            assert archive.read(f"fastscore/{path.relative_to(sources).as_posix()}") == path.read_bytes()
        assert b"__path__" not in archive.read("fastscore/kernels/__init__.py")
        for path in (sources / "fastscore").rglob("*"):
            name = path.relative_to(sources).as_posix()
            if path.suffix == ".py" and not name.startswith("fastscore/kernels/"):
                assert archive.read(name) == path.read_bytes(), name
        assert "fastscore/py.typed" in names
        weights = {path.relative_to(sources).as_posix() for path in (sources / "fastscore/models/weights").glob("*.*")}
        assert weights <= names
        metadata = archive.read(f"{info}/METADATA").decode().splitlines()
        assert "Name: fastscore" in metadata
        assert "Requires-Python: >=3.10" in metadata
        # `pip wheel .` downloads what is listed, installed or not: a listed torch would come a second time.
        assert not [line for line in metadata if re.match(r"Requires-Dist: torch\b", line)]


def test_wheel_without_the_extension(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    arguments = ("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, sources)
    pip(sys.executable, *arguments, FASTSCORE_BUILD_EXT="0")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"fastscore-{fastscore.__version__}-py3-none-any.whl"
    assert_wheel_is_right(wheel, sources)


def test_editable_install_without_the_extension(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    python = fresh_environment(tmp_path / "venv")
    pip(python, "install", "--no-build-isolation", "--no-deps", "--editable", sources, FASTSCORE_BUILD_EXT="0")
    code = "import fastscore, fastscore.kernels as k; print(fastscore.__file__, *k.__path__)"
    file, *kernels = run(python, code, tmp_path).split()
    assert Path(file) == sources / "fastscore/__init__.py"
    assert kernels[-1] == str(sources / "kernels")
    code = "from fastscore import _library; print(_library.WHY_NOT_NATIVE)"
    assert run(python, code, tmp_path) == "the native library fastscore._C is not built"


@pytest.mark.slow
def test_wheel_with_the_extension(tmp_path: Path) -> None:
    sources = copy_of_the_sources(tmp_path / "sources")
    pip(sys.executable, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, sources)
    (wheel,) = tmp_path.glob("*.whl")
    assert_wheel_is_right(wheel, sources)
    with zipfile.ZipFile(wheel) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith((".so", ".pyd", ".dylib")))
        assert library.startswith("fastscore/_C.")
    python = fresh_environment(tmp_path / "venv")
    pip(python, "install", "--no-deps", wheel)
    code = (
        "import torch, fastscore.kernels; from fastscore import _library, ops;"
        "ops.linear_step(torch.ones(2), [], torch.ones(2));"
        "print(fastscore.__file__, *_library.NATIVE.launches())"
    )
    file, launched = run(python, code, tmp_path).split()
    assert Path(file).is_relative_to(tmp_path / "venv")
    assert launched.startswith("linear_step.")


def test_kernels_in_the_checkout() -> None:
    import fastscore.kernels

    if Path(fastscore.__file__).parent == ROOT / "fastscore":
        assert [Path(path) for path in fastscore.kernels.__path__] == [ROOT / "kernels"]
    body = (ROOT / "kernels/__init__.py").read_text().strip()
    assert body.startswith('"""'), "kernels/__init__.py is a docstring only: the alias replaces it in a checkout"
    assert body.count('"""') == 2
    assert body.endswith('"""')


# ------------------------------------------------------------------------------------------------ setup.py


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module; nothing is built."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.setenv("FASTSCORE_BUILD_EXT", "0")
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("fastscore_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_toolkit(folder: Path, release: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include/cuda_runtime_api.h").touch()
    nvcc = folder / "bin/nvcc"
    nvcc.write_text(
        f'#!/bin/sh\ncase "$*" in *dryrun*) echo "#\\$ TOP={folder}" >&2;; *) echo "release {release}, V";; esac\n'
    )
    nvcc.chmod(0o755)
    return folder


def test_packages(setup_py: ModuleType) -> None:
    packages = setup_py.packages()
    assert packages.count("fastscore.kernels") == 1
    assert {"fastscore", "fastscore.ops", "fastscore.reference"} <= set(packages)
    assert not [name for name in packages if name.split(".")[0] != "fastscore"]


def test_cuda_is_decided_by_torch_and_the_toolkit(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toolkit = make_toolkit(tmp_path / "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.delenv("FASTSCORE_BUILD_CUDA", raising=False)

    def torch_with(cuda: str | None) -> SimpleNamespace:
        # No `cuda` attribute: asking for a GPU raises.
        return SimpleNamespace(__version__="2.9.0", version=SimpleNamespace(cuda=cuda))

    assert setup_py.find_cuda(torch_with("13.2")) == toolkit
    assert setup_py.find_cuda(torch_with(None)) is None
    assert "building without CUDA kernels: torch 2.9.0 is built without CUDA" in capsys.readouterr().err
    assert setup_py.find_cuda(torch_with("12.8")) is None
    assert f"the toolkit {toolkit} is 13.0, but torch was built with CUDA 12.8" in capsys.readouterr().err

    monkeypatch.setenv("FASTSCORE_BUILD_CUDA", "1")
    assert setup_py.find_cuda(torch_with("13.0")) == toolkit
    with pytest.raises(SystemExit, match=r"FASTSCORE_BUILD_CUDA=1, but torch 2\.9\.0 is built without CUDA"):
        setup_py.find_cuda(torch_with(None))
    monkeypatch.setattr(setup_py, "find_toolkit", lambda: (None, "/x has no bin/nvcc"))
    with pytest.raises(SystemExit, match=r"no CUDA toolkit was found \(/x has no bin/nvcc\); set CUDA_HOME"):
        setup_py.find_cuda(torch_with("13.0"))

    monkeypatch.setenv("FASTSCORE_BUILD_CUDA", "0")
    assert setup_py.find_cuda(torch_with("13.0")) is None
    monkeypatch.setenv("FASTSCORE_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="FASTSCORE_BUILD_CUDA must be auto, 0 or 1, got 'yes'"):
        setup_py.find_cuda(torch_with("13.0"))


def test_toolkit_behind_a_wrapper_script(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toolkit = make_toolkit(tmp_path / "cuda-13.0", "13.0")
    wrapper = tmp_path / "local/bin/nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    assert setup_py.find_toolkit() == (toolkit, "")
    (toolkit / "include/cuda_runtime_api.h").unlink()
    found, tried = setup_py.find_toolkit()
    assert found != toolkit
    assert found is not None or f"{toolkit} has no include/cuda_runtime_api.h" in tried


def test_architectures(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert setup_py.cuda_archs(torch) == ["8.0", "9.0", "10.0", "12.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0a+PTX")
    assert setup_py.cuda_archs(torch) == ["8.6", "9.0a+PTX"]
    assert setup_py.gencode(["8.6", "9.0a+PTX"]) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match=r"must name architectures like 8.0 or 9.0a\+PTX, got 'Hopper'"):
        setup_py.cuda_archs(torch)


def test_old_setuptools_is_refused(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setuptools.__version__", "65.5.0")
    with pytest.raises(
        SystemExit, match=r"needs setuptools >= 77, found 65\.5\.0: pip install -U setuptools wheel ninja"
    ):
        setup_py.__spec__.loader.exec_module(setup_py)

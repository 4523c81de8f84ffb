"""The shell scripts: syntax, how they refuse, when they install again, and what CI does when a part fails."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*.sh"))]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


def bash(code: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def clone(tmp_path):
    """What the scripts look at, in a folder of its own (with a blank in its name)."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    (folder / "csrc").mkdir()
    (folder / "tests").mkdir()
    (folder / "csrc" / "a.cpp").write_text("int a;\n")
    return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not script.name.startswith("_"):
        assert os.access(script, os.X_OK)
        assert "set -euo pipefail" in script.read_text()


def test_no_python_is_said_clearly():
    done = bash("source scripts/_env.sh && set -e && find_python", FASTSCORE_PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert done.stderr.startswith("error: fastscore needs Python 3.10 or newer. Tried: /nowhere/python.")


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")  # what `sys.exit(sys.version_info < (3, 10))` of an old one does
    old.chmod(0o755)
    done = bash("source scripts/_env.sh && set -e && find_python", FASTSCORE_PYTHON=str(old))
    assert done.returncode == 1
    assert "needs Python 3.10 or newer" in done.stderr


def test_the_python_named_is_taken():
    done = bash("source scripts/_env.sh && set -e && find_python", FASTSCORE_PYTHON=sys.executable)
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


def test_no_compiler_is_said_clearly():
    done = bash(f"source scripts/_env.sh && set -e && check_toolchain '{sys.executable}'", CXX="/nowhere/c++ -O2")
    assert done.returncode == 1
    assert "error: no C++ compiler (looked for '/nowhere/c++')" in done.stderr


def test_fingerprint_follows_what_the_build_depends_on(clone):
    def fingerprint(**environment: str) -> str:
        code = f"source scripts/_env.sh && PYTHON='{sys.executable}' && fingerprint"
        done = bash(code, clone, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = fingerprint()
    assert fingerprint() == first
    others = {fingerprint(FASTSCORE_BUILD_CUDA="0"), fingerprint(FASTSCORE_TORCH="torch==2.9.0")}
    (clone / "csrc" / "a.cpp").write_text("int b;\n")
    others.add(fingerprint())
    assert len(others | {first}) == 4
    (clone / "README.md").write_text("words")
    assert fingerprint() in others


def test_extras_are_read_from_the_installed_package():
    try:
        importlib.metadata.distribution("fastscore")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastscore is on the path but not installed")
    done = bash(f"source scripts/_env.sh && PYTHON='{sys.executable}' && extra_requirements test lint")
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert any(name.startswith("ruff") for name in names)
    assert "mlxtend" in names  # through fastscore[train]
    assert not {"fastscore", "torch"} & {re.split(r"[\W]", name)[0] for name in names}


def test_a_failing_command_shows_its_log(clone):
    (clone / ".venv").mkdir()
    done = bash("source scripts/_env.sh && set -e && logged sh -c 'echo the reason; exit 3' && echo unreachable", clone)
    assert done.returncode == 1
    assert "the reason" in done.stderr
    assert "error: this failed: sh -c" in done.stderr
    assert "unreachable" not in done.stdout


@pytest.mark.parametrize("failing", ["", "pytest", "slow", "ruff", "mypy", "clang-format"])
def test_ci_runs_every_part_and_fails_with_it(clone, failing):
    stubs = clone / ".venv" / "bin"
    stubs.mkdir(parents=True)
    for name in ("ruff", "mypy", "clang-format"):
        (stubs / name).write_text(f"#!/bin/sh\necho ran {name} $1\nexit {int(failing == name)}\n")
        (stubs / name).chmod(0o755)
    (clone / "scripts" / "test.sh").write_text(
        'case "$*" in *"-m slow"*) part=slow;; *) part=pytest;; esac\n'
        f'echo "ran $part"\nif [ "$part" = "{failing}" ]; then exit 1; fi\n'
    )
    done = bash(".ci/run", clone, CI="true")
    assert done.returncode == int(bool(failing)), done.stderr
    if failing:
        assert "::: FAILED: " in done.stderr
    else:
        for part in ("pytest", "ruff check", "ruff format", "mypy", "clang-format --dry-run", "slow"):
            assert f"ran {part}" in done.stdout
        assert "::: all passed" in done.stdout

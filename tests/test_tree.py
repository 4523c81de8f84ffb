"""The tree: one stem per op, found everywhere by its name, and nothing at the top that does not belong there."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEMS = sorted(p.stem for p in (ROOT / "fastscore" / "ops").glob("*.py") if not p.stem.startswith("_"))
PLACES = [
    "fastscore/reference/{}.py",
    "csrc/cpu/{}.cpp",
    "csrc/cpu/simd/{}.cpp",
    "tests/ops/test_{}.py",
    "benchmarks/test_{}.py",
]
# The reference of the noise is its specification: tested there; timed as part of the steps that draw with it.
ELSEWHERE = {"philox": "tests/reference/test_philox.py"}
TOP = {
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
    *(".gitignore", ".clang-format", ".ci", "csrc", "kernels", "fastscore", "benchmarks", "tests", "scripts"),
}


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("place", PLACES)
def test_an_op_has_the_same_name_everywhere(stem, place):
    if stem in ELSEWHERE and place.startswith(("benchmarks", "tests/ops")):
        assert not (ROOT / place.format(stem)).exists()
        assert (ROOT / ELSEWHERE[stem]).is_file()
    else:
        assert (ROOT / place.format(stem)).is_file(), f"{place.format(stem)} is missing"


def test_the_first_ops_are_there():
    assert {"linear_step", "langevin_step", "group_norm_silu"} <= set(STEMS)


def test_top_level_is_what_the_design_draws():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert {name.split("/")[0] for name in listed.splitlines()} <= TOP

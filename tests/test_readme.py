"""The README runs: each of its Python examples, and every command, option and file that it names exists."""

import re
import shutil
from pathlib import Path

import pytest

import fastscore
from fastscore import _library, cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEMS = sorted(p.stem for p in (ROOT / "fastscore" / "ops").glob("*.py") if not p.stem.startswith("_"))
CHECKPOINTS = {"score_sde.pth": "checkpoint_ncsnpp_ve.pth", "ncsnv2.pth": "checkpoint_ncsnv2.pth"}  # that it loads
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("source", EXAMPLES, ids=[f"example{i}" for i in range(len(EXAMPLES))])
def test_example(source, tmp_path, monkeypatch):
    for name, recorded in CHECKPOINTS.items():
        if name in source:
            shutil.copy(ROOT / "tests" / "golden" / "networks" / recorded, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "README.md", "exec"), {"__name__": "readme"})


def test_commands_parse():
    commands = re.findall(r"^fastscore (.+?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert commands
    for command in commands:
        cli._parser().parse_args(command.split())


def test_every_sampler_is_named():
    missing = [name for name in fastscore.samplers.names() if f"`{name}`" not in README]
    assert not missing


def test_the_table_of_ops_is_true():
    rows = re.findall(r"^\| `(\w+)` \| yes \| (yes|-) \| (yes|-) \| (yes|-) \|", README, re.MULTILINE)
    assert [row[0] for row in rows] == STEMS
    cuda = _library.build_info().get("cuda") is not None
    for op, *marks in rows:
        for backend, mark in zip(("cpu", "cuda", "triton"), marks, strict=True):
            there = any(name.startswith(op) for name in _library.OVERLOADS[backend])
            if backend != "cuda" or cuda:
                assert there == (mark == "yes"), (op, backend)


def test_named_files_exist():
    named = {path for path in re.findall(r"(?:\]\(|`|bash )([\w./-]+\.(?:sh|py|png|md))", README) if "/" in path}
    assert {"scripts/demo.sh", "scripts/test.sh"} <= named
    missing = {path for path in named if not path.startswith("out/") and not (ROOT / path).exists()}
    assert not missing


def test_every_environment_variable_of_the_code_is_in_the_table():
    sources = [ROOT / "setup.py", *(ROOT / "scripts").glob("*.sh")]
    sources += [path for folder in ("fastscore", "kernels", "csrc") for path in (ROOT / folder).rglob("*.*")]
    read = {
        name
        for path in sources
        if path.suffix in {".py", ".sh", ".cpp", ".h", ".cu"}
        for name in re.findall(
            r"(?:getenv\(|environ\.get\(|environ\[|\$\{)[\"']?(FASTSCORE_[A-Z_]+)", path.read_text(encoding="utf-8")
        )
    }
    assert {"FASTSCORE_BACKEND", "FASTSCORE_TORCH", "FASTSCORE_BUILD_CUDA"} <= read
    assert read <= set(re.findall(r"^\| `(FASTSCORE_[A-Z_]+)`", README, re.MULTILINE))

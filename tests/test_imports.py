"""Imports go one way, and `import fastscore` needs torch alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastscore"

# From the ground up. A module may import its own layer entry and whatever stands in a lower layer; nothing higher.
LAYERS = [
    ["_checks", "_output", "kernels"],
    ["sde"],
    ["schedule"],
    ["score", "reference"],
    ["_library"],
    ["_backend"],
    ["ops"],
    ["noise", "nn"],
    ["engine"],
    ["models", "accelerate", "reference.samplers"],
    ["samplers"],
    ["likelihood", "control"],
    ["training", "evaluation", "compat"],
    ["cli"],
    ["__main__"],
]
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
# Whoever selects or launches kernels. Samplers and models never know which backend runs them.
BACKEND_KNOWERS = {"_backend", "_library", "ops", "noise", "nn", "engine", "cli", "testing", "", "__main__"}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    """Dotted name below `fastscore`; "" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _entry(module: str) -> str:
    """The entry of LAYERS a module belongs to: the longest prefix that is listed."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LAYER_OF:
            return ".".join(parts[:length])
    return parts[0]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(tree: ast.AST, module: str, is_package: bool, lazy: bool = False) -> Iterator[tuple[str, bool, int]]:
    """(dotted target, inside a function?, line) of every import that runs; those for type checkers do not."""
    for node in ast.iter_child_nodes(tree):
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, inside, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["fastscore", *module.split(".")] if module else ["fastscore"]
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                yield f"{base}.{alias.name}", inside, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            target = node.args[0]
            if isinstance(target, ast.JoinedStr):  # f"fastscore.kernels.{name}": what it starts with says the package
                target = target.values[0]
            assert isinstance(target, ast.Constant), f"{module}:{node.lineno}: import_module of a computed name"
            yield target.value, inside, node.lineno
        if not _is_type_checking(node):
            yield from _imports(node, module, is_package, inside)


def _fastscore_imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """The same for targets in this package, as dotted names below `fastscore`."""
    tree = ast.parse(path.read_text())
    for target, lazy, line in _imports(tree, _name(path), path.name == "__init__.py"):
        if target == "fastscore" or target.startswith("fastscore."):
            yield target[len("fastscore.") :], lazy, line


def test_every_module_has_a_layer():
    unknown = {_entry(_name(p)) for p in _modules()} - set(LAYER_OF) - {"", "testing"}
    assert not unknown, f"not in LAYERS: {sorted(unknown)}"
    assert len(_modules()) > 20


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    module = _name(path)
    entry, package = _entry(module), module.split(".")[0]
    offenses = []
    for target, lazy, line in _fastscore_imports(path):
        to, where = _entry(target), f"{path.relative_to(ROOT)}:{line} imports fastscore.{target}"
        if to == "testing" and entry != "testing":
            offenses.append(f"{where}: testing/ is for tests and benchmarks")
        elif to == "kernels" and not lazy:
            offenses.append(f"{where}: kernels are imported inside a launcher")
        elif to in ("_C", "kernels", "_backend", "_library") and package not in BACKEND_KNOWERS:
            offenses.append(f"{where}: only {sorted(BACKEND_KNOWERS - {'', 'testing'})} may know about backends")
        elif module == "" and to in ("cli", "__main__", "testing", "training"):
            offenses.append(f"{where}: not part of `import fastscore`")
        elif entry in LAYER_OF and to in LAYER_OF and to != entry and LAYER_OF[to] >= LAYER_OF[entry]:
            offenses.append(f"{where}: {to} stands above or beside {entry}")
    assert not offenses, "\n".join(offenses)


def test_the_walk_sees_every_kind_of_import():
    """The checker itself: a module of `ops` that breaks each rule in another spelling."""
    source = """
import fastscore.samplers
from fastscore import models
from ..samplers import PCSampler
from . import linear_step
from .langevin_step import langevin_step
import importlib
importlib.import_module("fastscore.cli")
if TYPE_CHECKING:
    from fastscore.noise import Noise
def launch():
    from fastscore.kernels import linear_step
"""
    found = list(_imports(ast.parse(source), "ops.demo", is_package=False))
    assert [(target, lazy) for target, lazy, _ in found] == [
        ("fastscore.samplers", False),
        ("fastscore.models", False),
        ("fastscore.samplers.PCSampler", False),
        ("fastscore.ops.linear_step", False),
        ("fastscore.ops.langevin_step.langevin_step", False),
        ("importlib", False),
        ("fastscore.cli", False),
        ("fastscore.kernels.linear_step", True),
    ]


def test_kernels_register_nothing():
    """Triton sources define kernels; schemas and registration live in _library.py and ops/."""
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        text = path.read_text().replace("torch.library.wrap_triton", "")  # starts a kernel where torch.compile sees it
        for word in ("torch.library", "custom_op", "triton_op", "Library(", "autograd.Function"):
            assert word not in text, f"{path.relative_to(ROOT)} registers: {word}"


BLOCKED = ["triton", "scipy", "safetensors", "tqdm", "PIL", "matplotlib", "mlxtend", "pybind11", "numpy", "setuptools"]

FRESH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked by the test: " + name)

import torch  # torch may look for numpy itself; it works without
before = set(sys.modules)
for name in list(sys.modules):
    if name.split(".")[0] in {blocked!r}:
        del sys.modules[name]
sys.meta_path.insert(0, Blocked())
import fastscore
for name in fastscore.__all__:
    getattr(fastscore, name)
new = {{name.split(".")[0] for name in set(sys.modules) - before}} & set({blocked!r})
assert not new, new
assert "fastscore.cli" not in sys.modules and "fastscore.testing" not in sys.modules
print("imported", len([m for m in sys.modules if m.startswith("fastscore")]))
"""


def test_import_needs_torch_alone():
    code = FRESH.format(blocked=BLOCKED)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported")


def test_import_does_not_start_cuda_or_compile():
    code = (
        "import subprocess, torch\n"
        "def refuse(*args, **kwargs): raise RuntimeError('a process was started: ' + repr(args))\n"
        "subprocess.Popen.__init__ = refuse\n"
        "import fastscore\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr

"""Which method a 3x3 convolution takes where it was measured: a table on disk, one for each machine and thread count.

Nothing is measured unless somebody asks (`fastscore.accelerate(..., tune=True)`); without a table a count decides.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch

Shape = tuple[int, int, int, int, int]  # batch, channels, height, width, outputs


def path(threads: int) -> Path:
    """The file of this machine: below $FASTSCORE_CACHE, or the user's cache directory."""
    base = os.environ.get("FASTSCORE_CACHE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) if base else Path(cache, "fastscore")
    name = f"{_processor()}-{torch.backends.cpu.get_cpu_capability()}-{threads}-threads"
    return folder / f"conv3x3-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}.json"


def planned(shape: Shape, threads: int) -> str | None:
    """The method that was measured to be the fastest; None where none was."""
    return _table(path(threads)).get(_key(shape))


def store(methods: dict[Shape, str], threads: int) -> Path:
    """Add to the table of this machine; returns its file."""
    file = path(threads)
    table = _table(file) | {_key(shape): method for shape, method in methods.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # which goes, whatever happens
        whole = Path(folder, file.name)
        whole.write_text(json.dumps(table, indent=1, sort_keys=True))
        whole.replace(file)
    _table.cache_clear()
    return file


def _key(shape: Shape) -> str:
    batch, channels, height, width, outputs = shape
    return f"{batch}x{channels}x{height}x{width} to {outputs}"


@lru_cache
def _table(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    try:
        table = json.loads(file.read_text())
        methods = {"direct", "winograd2", "winograd4"}
        if not isinstance(table, dict) or not methods.issuperset(table.values()):
            raise ValueError("it is no table of methods")
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{file} is left out, delete it or measure again: {error}", stacklevel=2)
        return {}
    return table


@lru_cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"

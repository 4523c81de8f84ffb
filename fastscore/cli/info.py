"""`fastscore info`: what this installation can do."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import torch

import fastscore
from fastscore import _backend, _library


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    info = commands.add_parser("info", help="say what this installation can do")
    info.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> None:
    build = _library.build_info()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"fastscore  {fastscore.__version__}")
    print(f"python     {platform.python_version()}, {platform.system()} {platform.machine()}")
    print(f"torch      {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"processor  {_processor()}, capability {capability}")
    if build:
        cuda = f"CUDA {build['cuda']} for {build['cuda_archs']}" if build["cuda"] else "no CUDA"
        print(f"kernels    compiled for {', '.join(build['isas'])}; {build['isa']} in use; {cuda}")
    print("backends")
    for name in _backend.BACKENDS:
        reason = _backend.why_not(name)
        print(f"  {name:<9}  " + ("there" if reason is None else f"not there: {reason}"))
    print("devices")
    for index in range(-1, torch.cuda.device_count()):
        device = torch.device("cpu") if index < 0 else torch.device("cuda", index)
        what = _processor() if index < 0 else torch.cuda.get_device_name(index)
        print(f"  {device!s:<9}  {what}, backend {_backend.resolve(device)}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return platform.processor() or platform.machine()

"""Other runtimes give the numbers of the network, and AVX2 where they are held to it."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastscore.testing import runtimes
from fastscore.testing.avx2_only import SOURCE


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.time = nn.Linear(1, 8)

    def forward(self, x, labels):
        h = self.first(x) + self.time(labels[:, None])[:, :, None, None]
        return self.last(torch.nn.functional.silu(h))


@pytest.mark.parametrize("name", [name for name in runtimes.RUNTIMES if name != "torch.compile"])
def test_a_runtime_computes_the_network(name):
    if missing := runtimes.why_not(name):
        pytest.skip(missing)
    torch.manual_seed(0)
    network, x, labels = Net().eval(), torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.7])
    forward = runtimes.RUNTIMES[name](network, x, labels)
    assert network.first.weight.is_contiguous()
    for shift in (0, 0.2):  # other values than those it was made with
        got, exact = (
            forward(x + shift, labels + shift),
            network.double()((x + shift).double(), (labels + shift).double()),
        )
        network.float()
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
        assert not got.requires_grad


def test_what_is_missing_is_named(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert runtimes.why_not("eager") is None
    assert runtimes.why_not("OpenVINO") == "OpenVINO needs openvino: pip install fastscore[bench]"


CODE = """
from fastscore.testing.avx2_only import avx2_only, library
seen = [library().sees_avx512()]
for _ in range(2):
    with avx2_only():
        seen.append(library().sees_avx512())
    seen.append(library().sees_avx512())
assert seen == [1, 0, 1, 0, 1], seen
import ctypes, faulthandler
faulthandler.disable()
ctypes.string_at(0)  # a fault of another kind still ends the process
"""


def test_avx2_only_hides_avx512_from_its_thread():
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    if not {"cpuid_fault", "avx512f"} <= set(flags):
        pytest.skip("no AVX-512, or a processor that cannot fault at CPUID")
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == -11, done.stderr
    assert "AssertionError" not in done.stderr
    assert SOURCE.is_file()

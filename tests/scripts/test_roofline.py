"""The predictions of scripts/roofline.py, against arithmetic done here."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import roofline


def test_a_step_is_bound_by_its_bytes():
    part = roofline._pc_step((16, 3, 256, 256))
    ours, eager = part.ours(), part.eager()
    state = 4 * 16 * 3 * 256 * 256
    assert sorted(kernel.name for kernel in ours) == ["langevin_step_", "linear_step_"]
    assert sum(kernel.cost.bytes for kernel in ours) == pytest.approx(8 * state, rel=1e-4)
    assert sum(kernel.cost.bytes for kernel in eager) == pytest.approx(32 * state, rel=1e-4)
    gpu = roofline.GPUS["H100"]
    assert sum(gpu.seconds(kernel) for kernel in ours) == pytest.approx(8 * state / 3350e9, rel=1e-4)


def test_a_product_of_matrices_is_bound_by_its_operations():
    def make():
        a, b = (torch.empty(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        return lambda: a @ b

    (kernel,) = roofline.kernels(make)
    assert (kernel.matrix, kernel.half, kernel.cost.operations) == (True, True, 2 * 8192**3)
    assert roofline.GPUS["A100"].seconds(kernel) == pytest.approx(2 * 8192**3 / 312e12)


def test_group_norm_in_eager_is_read_twice_for_the_norm_and_once_for_silu():
    part = roofline._group_norm((4, 128, 256, 256), torch.bfloat16)
    size = 2 * 4 * 128 * 256 * 256
    assert sum(kernel.cost.bytes for kernel in part.ours()) == pytest.approx(2 * size, rel=1e-3)
    assert sum(kernel.cost.bytes for kernel in part.eager()) == pytest.approx(5 * size, rel=1e-3)


def test_the_table_for_a_gpu_of_ones_own(capsys, monkeypatch):
    monkeypatch.setattr(roofline, "parts", lambda: [roofline._pc_step((16, 3, 256, 256))])
    roofline.main(["--bandwidth", "1000", "--peak", "100", "--vector-peak", "10"])
    out = capsys.readouterr().out
    assert "your GPU, 1000 GB/s" in out
    assert re.search(r"\| 2 \| 101 \| 101 µs \| 16 \| 403 \| 403 µs \| 4.00 \|", out)
    with pytest.raises(SystemExit):
        roofline.main(["--bandwidth", "1000"])
    assert "go together and are positive" in capsys.readouterr().err

"""Samplers on CUDA tensors that have no memory: no tensor on another device, no read of a value between the steps."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

import fastscore
from fastscore import VESDE, VPSDE, Convention
from fastscore.testing.fake_cuda import Devices, can_index_fake_cuda

pytestmark = pytest.mark.skipif(
    not can_index_fake_cuda(), reason="this torch needs a driver to index fake CUDA tensors"
)
ADAPTIVE = {name for name in fastscore.samplers.names() if fastscore.samplers.describe(name).calls == "adaptive"}
REQUIRED: dict[str, dict[str, Any]] = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}


@pytest.mark.parametrize("name", fastscore.samplers.names())
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_a_sampler_runs_on_cuda_tensors(sde: fastscore.SDE, name: str) -> None:
    options = REQUIRED.get(name, {}) | ({} if name in ADAPTIVE else {"steps": 24})

    def model(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x + t.reshape(-1, 1, 1, 1)

    sampler = fastscore.sampler(name, sde, model, convention=Convention("noise"), **options)
    devices = Devices()
    with FakeTensorMode(allow_non_fake_inputs=True), devices:
        if name in ADAPTIVE:  # its one read of a trial ends it
            with pytest.raises(DataDependentOutputException):
                sampler.sample((4, 3, 8, 8), device="cuda")
        else:
            out = sampler.sample((4, 3, 8, 8), device="cuda")
            assert isinstance(out, FakeTensor)
            assert (out.device.type, out.shape, out.dtype) == ("cuda", (4, 3, 8, 8), torch.float32)
    ours = {op for op in devices.called if op.startswith("fastscore::")}
    assert ours or name == "consistency"
    assert not any(op.startswith("aten::_local_scalar") for op in devices.called)

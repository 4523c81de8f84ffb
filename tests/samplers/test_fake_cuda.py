"""Samplers on CUDA tensors that have no memory: no tensor on another device, no read of a value between the steps."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastscore
from fastscore import VESDE, VPSDE, Convention

ADAPTIVE = {name for name in fastscore.samplers.names() if fastscore.samplers.describe(name).calls == "adaptive"}
REQUIRED: dict[str, dict[str, Any]] = {"langevin": {"step_size": 1e-4}, "annealed-langevin": {"step_size": 1e-5}}


class Devices(TorchDispatchMode):
    """Keeps the ops that were called on CUDA tensors, and refuses one of larger tensors that are elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.numel() > 1]
        places = {t.device.type for t in tensors}
        if "cuda" in places:
            self.called.add(str(func._schema.name))
            copies = ("aten::_to_copy", "aten::copy_", "aten::lift_fresh")
            assert places == {"cuda"} or func._schema.name in copies, f"{func} on {places}"
        return out


@pytest.mark.parametrize("name", fastscore.samplers.names())
@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_a_sampler_runs_on_cuda_tensors(sde: fastscore.SDE, name: str) -> None:
    options = REQUIRED.get(name, {}) | ({} if name in ADAPTIVE else {"steps": 24})
    sampler = fastscore.sampler(name, sde, lambda x, t: 0.5 * x, convention=Convention("noise"), **options)
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

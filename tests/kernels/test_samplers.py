"""Whole samplers on Triton kernels: the numbers of the C++ kernels, and how many kernels a step launches."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from fastscore import (
    VESDE,
    VPSDE,
    AdaptiveSDESampler,
    Convention,
    DDPMSampler,
    DPMSolverSampler,
    PCSampler,
    RK45Sampler,
    _backend,
)
from fastscore.kernels._launch import LAUNCHES
from fastscore.samplers import Sampler
from fastscore.testing.networks import Smooth

SHAPE = (3, 2, 4, 6)
NOISE, CLEAN = Convention("noise"), Convention("denoised")
PC_STEP = {"linear_step_kernel": 2, "langevin_norms_kernel": 1, "langevin_rows_kernel": 1}
ERROR = {"error_norm_kernel": 1, "error_norm_roots_kernel": 1}

# A sampler of a number of steps, and what a step launches.
FIXED: dict[str, tuple[Callable[[int], Sampler], dict[str, int]]] = {
    "pc": (lambda n: PCSampler(VESDE(0.01, 10.0), Smooth(), steps=n, convention=CLEAN), PC_STEP),
    "pc per sample": (
        lambda n: PCSampler(VESDE(0.01, 10.0), Smooth(), norm="sample", steps=n, convention=CLEAN),
        PC_STEP,
    ),
    "dpm-solver++ 2m": (
        lambda n: DPMSolverSampler(VPSDE(), Smooth(), steps=n, convention=NOISE),
        {"solver_step_kernel": 1},
    ),
    "ddpm with clip": (
        lambda n: DDPMSampler(VPSDE(), Smooth(), steps=n, clip=1.0, convention=NOISE),
        {"solver_step_kernel": 1},
    ),
}
# A sampler with adaptive steps, what a trial launches, and what a run launches besides.
ADAPTIVE: dict[str, tuple[Callable[[], Sampler], dict[str, int], dict[str, int]]] = {
    "rk45": (
        lambda: RK45Sampler(VPSDE(), Smooth(), rtol=1e-2, atol=1e-2, first_step=0.05, eps=0.1, convention=NOISE),
        {"linear_step_kernel": 6, **ERROR},
        {"philox_normal_kernel": 1},
    ),
    "adaptive sde": (
        lambda: AdaptiveSDESampler(VPSDE(), Smooth(), rtol=0.5, atol=0.1, eps=0.2, h_init=0.1, convention=NOISE),
        {"linear_step_kernel": 2, **ERROR},
        {"linear_step_kernel": 1, "philox_normal_kernel": 1},
    ),
}


def assert_equals_the_native_kernels(make: Callable[[], Sampler], device: torch.device, roundings: int) -> Counter[str]:
    """And gives back what was launched.

    roundings: of float32, relative to the largest number, that the two may lie apart. Two a step is what their sums
    make, rounded with and without fused multiplication; the networks here damp what came before.
    """
    LAUNCHES.clear()
    x, info = make().sample(SHAPE, seed=3, device=device, return_info=True)
    launched = Counter(LAUNCHES)
    with _backend.backend("cpu"):
        want, other = make().sample(SHAPE, seed=3, device="cpu", return_info=True)
    assert torch.equal(torch.as_tensor(info.nfe).cpu(), torch.as_tensor(other.nfe))
    torch.testing.assert_close(x.cpu(), want, rtol=0.0, atol=roundings * 2.0**-24 * float(want.abs().max()))
    return launched


@pytest.mark.skipif(_backend.why_not("cpu") is not None, reason="the native library is not built")
@pytest.mark.parametrize("name", FIXED)
def test_fixed_steps(name: str, device: torch.device) -> None:
    make, per_step = FIXED[name]
    first, longer = (assert_equals_the_native_kernels(lambda n=n: make(n), device, 2 * n) for n in (5, 7))
    assert longer - first == {kernel: 2 * count for kernel, count in per_step.items()}


@pytest.mark.skipif(_backend.why_not("cpu") is not None, reason="the native library is not built")
@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps(name: str, device: torch.device) -> None:
    make, per_trial, besides = ADAPTIVE[name]
    launched = assert_equals_the_native_kernels(make, device, 30)
    trials = launched["error_norm_kernel"]
    assert trials > 2
    assert launched == Counter({kernel: trials * count for kernel, count in per_trial.items()}) + Counter(besides)

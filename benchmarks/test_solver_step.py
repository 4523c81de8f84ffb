"""How fast is one fused step that clamps or keeps its prediction, against the published formulas in PyTorch?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore.ops import solver_step, solver_step_
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

ALPHA_BAR, ALPHA_BAR_PREV = 0.5, 0.52  # a step in the middle of a schedule
BETA = 1 - ALPHA_BAR / ALPHA_BAR_PREV
POSTERIOR_VARIANCE = BETA * (1 - ALPHA_BAR_PREV) / (1 - ALPHA_BAR)


def _ddpm(x: Tensor, output: Tensor, noise: Tensor | None = None) -> Tensor:
    """Ho et al. 2020, eq. 6 and 7, of a clipped image; variance of Nichol and Dhariwal 2021, eq. 15."""
    eps, v = output.chunk(2, 1)
    noise = torch.randn_like(x) if noise is None else noise
    clean = ((x - math.sqrt(1 - ALPHA_BAR) * eps) / math.sqrt(ALPHA_BAR)).clamp(-1, 1)
    mean = (math.sqrt(ALPHA_BAR_PREV) * BETA / (1 - ALPHA_BAR)) * clean
    mean = mean + (math.sqrt(1 - BETA) * (1 - ALPHA_BAR_PREV) / (1 - ALPHA_BAR)) * x
    share = (v + 1) / 2
    log_variance = share * math.log(BETA) + (1 - share) * math.log(POSTERIOR_VARIANCE)
    return mean + torch.exp(0.5 * log_variance) * noise


def _ddpm_case(shape: tuple[int, ...], device: torch.device) -> Case:
    x, noise = (make_input(shape, device=device, seed=seed) for seed in range(2))
    output = make_input((shape[0], 2 * shape[1], *shape[2:]), device=device, seed=2)
    eps, v = output.chunk(2, 1)
    row = torch.tensor(
        [
            *(1 / math.sqrt(ALPHA_BAR), -math.sqrt(1 / ALPHA_BAR - 1), 1.0),  # p, q, c
            math.sqrt(1 - BETA) * (1 - ALPHA_BAR_PREV) / (1 - ALPHA_BAR),
            math.sqrt(ALPHA_BAR_PREV) * BETA / (1 - ALPHA_BAR),
            (BETA * POSTERIOR_VARIANCE) ** 0.25,
            math.log(BETA / POSTERIOR_VARIANCE) / 4,
        ],
        device=device,
    )
    rng, samples = torch.tensor([7, 1], device=device), torch.arange(shape[0], device=device)
    state = x.clone()  # a step shrinks it, so it may be stepped for as long as it takes
    fused_by_compiler = compiled(_ddpm, device)

    def check() -> None:
        fused = solver_step_(x.clone(), eps, (), row, exponent=v, noise=noise)
        oracle = _ddpm(x.double(), output.double(), noise.double())
        assert_error_within_budget(fused, oracle, _ddpm(x, output, noise), "solver_step_")

    return Case(
        "solver_step",
        f"{shape} float32, DDPM, clipped, learned variance",
        {
            "eager": lambda: _ddpm(x, output),
            "torch.compile": lambda: fused_by_compiler(x, output),
            "fastscore": lambda: solver_step_(state, eps, (), row, exponent=v, rng=rng, samples=samples),
        },
        check,
        x,
    )


ALPHA, SIGMA = math.sqrt(ALPHA_BAR), math.sqrt(1 - ALPHA_BAR)
ALPHA_NEXT, SIGMA_NEXT = math.sqrt(ALPHA_BAR_PREV), math.sqrt(1 - ALPHA_BAR_PREV)
STEP = math.log(ALPHA_NEXT / SIGMA_NEXT) - math.log(ALPHA / SIGMA)  # in log-SNR / 2; the step before was 0.9 of it
EXTRAPOLATION = 1 / (2 * 0.9)


def _dpm_solver(x: Tensor, eps: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Lu et al. 2022, DPM-Solver++(2M), algorithm 2, with a network that predicts the noise."""
    clean = (x - SIGMA * eps) / ALPHA
    mixed = (1 + EXTRAPOLATION) * clean - EXTRAPOLATION * before
    return (SIGMA_NEXT / SIGMA) * x - ALPHA_NEXT * math.expm1(-STEP) * mixed, clean


def _dpm_solver_case(shape: tuple[int, ...], device: torch.device) -> Case:
    x, eps, before = (make_input(shape, device=device, seed=seed) for seed in range(3))
    gain = -ALPHA_NEXT * math.expm1(-STEP)
    row = torch.tensor(
        [
            *(1 / ALPHA, -SIGMA / ALPHA, math.inf, SIGMA_NEXT / SIGMA),
            *(gain * (1 + EXTRAPOLATION), -gain * EXTRAPOLATION, 0.0, 0.0),
        ],
        device=device,
    )
    fused_by_compiler = compiled(_dpm_solver, device)

    def check() -> None:
        oracle = _dpm_solver(x.double(), eps.double(), before.double())
        results = solver_step(x, eps, [before], row), oracle, _dpm_solver(x, eps, before)
        for fused, exact, plain in zip(*results, strict=True):
            assert_error_within_budget(fused, exact, plain, "solver_step")

    return Case(
        "solver_step",
        f"{shape} float32, DPM-Solver++ 2M",
        {
            "eager": lambda: _dpm_solver(x, eps, before),
            "torch.compile": lambda: fused_by_compiler(x, eps, before),
            "fastscore": lambda: solver_step(x, eps, [before], row),
        },
        check,
        x,
    )


CASES: dict[str, Callable[[torch.device], Case]] = {
    "ddpm": lambda device: _ddpm_case((16, 3, 32, 32), device),
    "ddpm-large": lambda device: _ddpm_case((16, 3, 256, 256), device),
    "dpm-solver++": lambda device: _dpm_solver_case((16, 3, 32, 32), device),
}


@pytest.mark.parametrize("name", CASES)
def test_solver_step(report, name, contender, device):
    report(CASES[name](device), contender)

"""How fast is one fused Langevin corrector, against the published formulas operator by operator?"""

import pytest
import torch
from torch import Tensor

from fastscore.ops import langevin_step
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

SNR, ALPHA = 0.16, 0.98


def _eager(x: Tensor, score: Tensor, noise: Tensor | None = None) -> Tensor:
    """Song et al. 2021, algorithm 5, with norms averaged over the batch."""
    noise = torch.randn_like(x) if noise is None else noise
    score_norm = torch.linalg.vector_norm(score.flatten(1), dim=1).mean()
    noise_norm = torch.linalg.vector_norm(noise.flatten(1), dim=1).mean()
    step = 2 * ALPHA * (SNR * noise_norm / score_norm) ** 2
    return x + step * score + torch.sqrt(2 * step) * noise


def _case(shape: tuple[int, ...], device: torch.device) -> Case:
    x, score, noise = (make_input(shape, device=device, seed=seed) for seed in range(3))
    coefficients = torch.tensor([0.0, 1.0, 2 * ALPHA * SNR**2], device=device)
    rng, samples = torch.tensor([7, 1], device=device), torch.arange(shape[0], device=device)
    fused_by_compiler = compiled(_eager, device)

    def check() -> None:
        fused = langevin_step(x, score, coefficients, noise=noise)
        oracle = _eager(x.double(), score.double(), noise.double())
        assert_error_within_budget(fused, oracle, _eager(x, score, noise), "langevin_step")

    return Case(
        "langevin_step",
        f"{shape} float32",
        {
            "eager": lambda: _eager(x, score),
            "torch.compile": lambda: fused_by_compiler(x, score),
            "fastscore": lambda: langevin_step(x, score, coefficients, rng=rng, samples=samples),
        },
        check,
        x,
    )


@pytest.mark.parametrize("shape", [(16, 3, 32, 32), (16, 3, 256, 256)], ids=str)
def test_langevin_step(report, shape, contender, device):
    report(_case(shape, device), contender)

"""What does a whole predictor-corrector step cost outside the network?

The network is one that returns a tensor it was given, so only the sampler remains. Contenders are whole loops of
`STEPS` steps, Langevin corrector and reverse-diffusion predictor, and the time is per step:

eager          the published formulas, one operator per arithmetic term, with the work that the PyTorch code of Song
               et al. (2021) does: tables indexed by time, the std taken from a marginal of full size, noise from
               randn_like; 17 (VE) and 24 (VP) operators on a whole state per step, as many as a survey of it counted
torch.compile  the same step compiled
fastscore      `PCSampler.sample`, everything included: prior, labels, noise counters, checks, Python loop
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore import VESDE, VPSDE, PCSampler
from fastscore.noise import PhiloxNoise, ReplayNoise
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input
from fastscore.testing.timing import Case, compiled

STEPS, SHAPE, SNR = 50, (16, 3, 32, 32), 0.16
Network = Callable[[Tensor, Tensor], Tensor]


def _rows(v: Tensor) -> Tensor:
    return v[:, None, None, None]


class PublishedVE:
    """Reverse diffusion and Langevin for the VE SDE (Song et al. 2021, appendix E, algorithms 2 and 4)."""

    def __init__(self, device: torch.device, sigma_min: float = 0.01, sigma_max: float = 50.0, n: int = STEPS) -> None:
        self.device, self.sigma_min, self.sigma_max, self.n = device, sigma_min, sigma_max, n
        self.to(torch.float32)

    def to(self, dtype: torch.dtype) -> "PublishedVE":
        ends = math.log(self.sigma_min), math.log(self.sigma_max)
        self.sigmas = torch.exp(torch.linspace(*ends, self.n, dtype=dtype, device=self.device))
        return self

    def score(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, self.marginal(torch.zeros_like(x), t)[1])

    def marginal(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        index = (t * (self.n - 1)).long()
        sigma = self.sigmas[index]
        adjacent = torch.where(index == 0, torch.zeros_like(t), self.sigmas[index - 1])
        return torch.zeros_like(x), torch.sqrt(sigma**2 - adjacent**2)


class PublishedVP:
    """The same for the VP SDE (algorithms 3 and 5); the network predicts the noise, std in float32 as published."""

    def __init__(self, device: torch.device, beta_min: float = 0.1, beta_max: float = 20.0, n: int = STEPS) -> None:
        self.device, self.beta_min, self.beta_max, self.n = device, beta_min, beta_max, n
        self.to(torch.float32)

    def to(self, dtype: torch.dtype) -> "PublishedVP":
        ends = self.beta_min / self.n, self.beta_max / self.n
        self.betas = torch.linspace(*ends, self.n, dtype=dtype, device=self.device)
        self.alphas = 1 - self.betas
        return self

    def score(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        return -network(x, t * 999) / _rows(self.marginal(torch.zeros_like(x), t)[1])

    def marginal(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_mean = -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min
        return _rows(torch.exp(log_mean)) * x, torch.sqrt(1 - torch.exp(2 * log_mean))

    def alpha(self, t: Tensor) -> Tensor:
        return self.alphas[(t * (self.n - 1)).long()]

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        index = (t * (self.n - 1)).long()
        return _rows(torch.sqrt(self.alphas[index])) * x - x, torch.sqrt(self.betas[index])


Published = PublishedVE | PublishedVP
Draw = Callable[[Tensor], Tensor]


def _published_step(
    sde: Published, network: Network, x: Tensor, t: Tensor, draw: Draw = torch.randn_like
) -> tuple[Tensor, Tensor]:
    """One corrector and one predictor step; returns the state with and without the last noise."""
    score = sde.score(network, x, t)
    noise = draw(x)
    score_norm = torch.norm(score.reshape(score.shape[0], -1), dim=-1).mean()
    noise_norm = torch.norm(noise.reshape(noise.shape[0], -1), dim=-1).mean()
    step = (SNR * noise_norm / score_norm) ** 2 * 2 * sde.alpha(t)
    mean = x + _rows(step) * score
    x = mean + _rows(torch.sqrt(step * 2)) * noise

    drift, diffusion = sde.discretize(x, t)
    weight = 1.0  # one half for the probability flow
    drift = drift - _rows(diffusion) ** 2 * sde.score(network, x, t) * weight
    mean = x - drift
    return mean + _rows(diffusion) * draw(x), mean


def _published_loop(
    sde: Published, network: Network, x: Tensor, eps: float, step: Callable = _published_step
) -> Tensor:
    mean = x
    for t in torch.linspace(1, eps, sde.n, device=x.device):
        x, mean = step(sde, network, x, torch.ones(x.shape[0], device=x.device) * t)
    return mean


def _case(name: str, device: torch.device) -> Case:
    sde = {"VE": VESDE(), "VP": VPSDE()}[name]
    published: Published = {"VE": PublishedVE, "VP": PublishedVP}[name](device)
    eps = sde.sampling_eps
    output = make_input(SHAPE, device=device, seed=1)

    def network(x: Tensor, label: Tensor) -> Tensor:
        return output

    start = sde.prior_sample(SHAPE, noise=PhiloxNoise(0), device=device)
    sampler = PCSampler(sde, network, "reverse_diffusion", "langevin", snr=SNR, steps=STEPS)
    fused_by_compiler = compiled(lambda x, t: _published_step(published, network, x, t), device)

    def check() -> None:
        """Under the same noise, PCSampler errs no more than twice as much as the published loop, against float64."""
        recorded = [make_input(SHAPE, device=device, seed=100 + i) for i in range(2 * STEPS)]

        def replay(dtype: torch.dtype) -> Tensor:
            noise = iter(recorded)
            return _published_loop(
                published.to(dtype),
                lambda x, label: output.to(dtype),
                start.to(dtype),
                eps,
                lambda *arguments: _published_step(*arguments, lambda _: next(noise).to(dtype)),
            )

        ours = sampler.sample(start, noise=ReplayNoise(recorded))
        assert_error_within_budget(ours, replay(torch.float64), replay(torch.float32), f"PC sampler, {name}")

    return Case(
        "pc_step",
        f"{name} {SHAPE} float32",
        {
            "eager": lambda: _published_loop(published, network, start, eps),
            "torch.compile": lambda: _published_loop(
                published, network, start, eps, lambda _sde, _network, x, t: fused_by_compiler(x, t)
            ),
            "fastscore": lambda: sampler.sample(start, seed=0),
        },
        check,
        start,
        steps=STEPS,
    )


@pytest.mark.parametrize("sde", ["VE", "VP"])
def test_pc_step(report, sde, contender, device):
    report(_case(sde, device), contender)

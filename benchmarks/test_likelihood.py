"""How long does an evaluation of the likelihood's ODE take, beside the published scheme, and how much memory?

The published scheme calls the network for the drift, and once more for the divergence, whose gradient it takes; scipy
solves the ODE on the host. It runs on the layers of torch in torch's own memory format, as the published network does;
ours on the fused ones, with weights in channels-last. All take the same steps to the same tolerance.
"""

import copy
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastscore
from fastscore import ReplayNoise, log_likelihood
from fastscore.models import ScoreNetwork
from fastscore.nn import GroupNormSiLU
from fastscore.testing.memory import peak_memory
from fastscore.testing.timing import Case

CONTENDERS = ("published", "vjp", "jvp", "vjp, 8 probes", "jvp, 8 probes")
BATCH = 16
EPS, TOLERANCE = 0.9, 1e-2  # one step of RK45 to t = 1
Solved = tuple[Tensor, int]


class PlainNorm(nn.GroupNorm):
    """GroupNorm and SiLU by torch's own layers, on the parameters of `GroupNormSiLU`."""

    silu: bool

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        x = x if add is None else x + add[:, :, None, None]
        y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.silu(y) if self.silu else y


def plain(model: ScoreNetwork) -> ScoreNetwork:
    """The network with torch's norms; other ops are plain PyTorch where the reference backend is asked for."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, GroupNormSiLU):
            layer.__class__ = PlainNorm
    return model


def published(model: ScoreNetwork, x: Tensor, probe: Tensor) -> Solved:
    """Log-likelihood, and evaluations."""
    from scipy.integrate import solve_ivp

    sde, batch = model.sde, len(x)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        p, q = (c.to(x) for c in model.convention.coefficients(sde, t.double(), "score"))
        shaped = (batch, *[1] * (x.ndim - 1))
        score = p.reshape(shaped) * x + q.reshape(shaped) * model(x, t * 999)
        f, g = sde.drift_coefficient(t).to(x), sde.diffusion(t).to(x)
        return f.reshape(shaped) * x - 0.5 * g.reshape(shaped) ** 2 * score

    def divergence(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            product = (drift(x, t) * probe).sum()
            (gradient,) = torch.autograd.grad(product, x)
        return (gradient * probe).flatten(1).sum(1)

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        sample = torch.from_numpy(state[:-batch].reshape(x.shape)).to(x)
        times = torch.full((batch,), t, device=x.device, dtype=x.dtype)
        with torch.no_grad():
            moved = drift(sample, times)
            traces = divergence(sample, times)
        return np.concatenate([moved.cpu().numpy().reshape(-1), traces.cpu().numpy()])

    start = np.concatenate([x.cpu().numpy().reshape(-1), np.zeros(batch)])
    with fastscore.backend("reference"):
        solution = solve_ivp(slope, (EPS, 1), start, rtol=TOLERANCE, atol=TOLERANCE, method="RK45")
    end = torch.from_numpy(solution.y[:, -1])
    return sde.prior_log_prob(end[:-batch].reshape(x.shape)) + end[-batch:], solution.nfev


def ours(model: ScoreNetwork, x: Tensor, probe: Tensor, mode: str, probes: int) -> Solved:
    noise = ReplayNoise([probe]) if probes == 1 else None
    options = {"rtol": TOLERANCE, "atol": TOLERANCE, "norm": "batch", "eps": EPS}
    result = log_likelihood(model.sde, model, x, mode=mode, probes=probes, noise=noise, **options)
    return result.log_likelihood, int(result.nfe[0])


@cache
def runs(device: torch.device) -> dict[str, Callable[[], Solved]]:
    model = fastscore.models.load("mnist32").to(device)
    fused = copy.deepcopy(model).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, *model.shape, generator=generator).to(device)
    probe = torch.randn(x.shape, generator=generator).sign().to(device)
    made = {"published": partial(published, plain(model), x, probe)}
    for name in CONTENDERS[1:]:
        mode, _, several = name.partition(", ")
        made[name] = partial(ours, fused, x, probe, mode, 8 if several else 1)
    return made


@cache
def case(device: torch.device) -> Case:
    contenders = runs(device)
    results = {name: run() for name, run in contenders.items()}

    def check() -> None:
        expected, steps = results["published"]
        for name in ("vjp", "jvp"):
            values, nfe = results[name]
            assert nfe == steps
            torch.testing.assert_close(values.cpu(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(*(results[name][0] for name in CONTENDERS[3:]), rtol=1e-5, atol=0)

    state = torch.empty(BATCH, 1, 32, 32, device=device)
    steps = {name: nfe for name, (_, nfe) in results.items()}
    return Case("likelihood", f"mnist32, {BATCH} images", contenders, check, state, steps)


def test_likelihood(report, benchmark, contender, device):
    report(case(device), contender)
    if not benchmark.disabled:
        benchmark.extra_info["peak_bytes"] = peak_memory(runs(device)[contender], device)

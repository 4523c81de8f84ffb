"""How long does an evaluation of the likelihood's ODE take, beside the published scheme, and how much memory?

The published scheme calls the network for the drift, and once more for the divergence, whose gradient it takes; scipy
solves the ODE on the host. It runs on the layers of torch in torch's own memory format; ours on the fused ones, with
weights in channels-last. All take the same steps to the same tolerance.
"""

import copy
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

import fastscore
from fastscore import ReplayNoise, log_likelihood
from fastscore.models import ScoreNetwork
from fastscore.testing.memory import peak_memory
from fastscore.testing.timing import Case
from fastscore.testing.unets import on_torch

CONTENDERS = ("published", "vjp", "jvp", "vjp, 8 probes", "jvp, 8 probes")
QUICK = ("[published]", "[vjp]", "[jvp]")
BATCH = 16
EPS, TOLERANCE = 0.9, 1e-2  # one step of RK45 to t = 1
Solved = tuple[Tensor, int]


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
    made = {"published": partial(published, on_torch(model), x, probe)}
    for name in CONTENDERS[1:]:
        mode, _, several = name.partition(", ")
        made[name] = partial(ours, fused, x, probe, mode, 8 if several else 1)
    return made


@cache
def case(device: torch.device, quick: bool) -> Case:
    contenders = {name: run for name, run in runs(device).items() if not quick or f"[{name}]" in QUICK}
    results = {name: run() for name, run in contenders.items()}

    def check() -> None:
        expected, steps = results["published"]
        for name in ("vjp", "jvp"):
            values, nfe = results[name]
            assert nfe == steps
            torch.testing.assert_close(values.cpu(), expected, rtol=1e-5, atol=0)
        if not quick:
            torch.testing.assert_close(*(results[name][0] for name in CONTENDERS[3:]), rtol=1e-5, atol=0)

    state = torch.empty(BATCH, 1, 32, 32, device=device)
    steps = {name: nfe for name, (_, nfe) in results.items()}
    return Case("likelihood", f"mnist32, {BATCH} images", contenders, check, state, steps)


def test_likelihood(report, benchmark, contender, device, pytestconfig):
    report(case(device, pytestconfig.getoption("--quick")), contender)
    if not benchmark.disabled:
        benchmark.extra_info["peak_bytes"] = peak_memory(runs(device)[contender], device)

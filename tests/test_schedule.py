"""Discrete schedules against published tables, their bridge to continuous time, and the grids of times."""

import math
from pathlib import Path

import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, DiscreteVPSDE, SubVPSDE
from fastscore.samplers.grid import CLEAN, SPACINGS, nodes, time_grid
from fastscore.testing.golden import load_cases

TABLES = Path(__file__).parent / "golden" / "sde_tables"
DPM = {case.id.rpartition(".")[2]: case.tensors for case in load_cases(TABLES, "dpm")}
GUIDED = load_cases(TABLES, "guided")[0].tensors
K_SIGMAS = load_cases(TABLES, "k")[0].tensors
SCHEDULES = {
    "linear": DiscreteVPSDE.linear(),
    "scaled_linear": DiscreteVPSDE.scaled_linear(),
    "cosine": DiscreteVPSDE.cosine(),
    "sqrt": DiscreteVPSDE.sqrt(),
    "short": DiscreteVPSDE.linear(25, 0.001, 0.2),
}
SDES = {"ve": VESDE(0.01, 50.0), "vp": VPSDE(), "subvp": SubVPSDE(), "discrete": SCHEDULES["linear"]}


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_published_tables(name, n):
    sde = {
        "linear": lambda: DiscreteVPSDE.linear(n, 0.1 / n, 20 / n, min_log_snr=None),
        "cosine": lambda: DiscreteVPSDE.cosine(n, min_log_snr=None),
    }[name]()
    expected = GUIDED[f"{name}_{n}_alphas_cumprod"]
    torch.testing.assert_close((2 * sde.log_alphas).exp(), expected, rtol=1e-10, atol=0)
    alpha, sigma = sde.marginal(sde.times(range(n)))
    torch.testing.assert_close(alpha.square(), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(sigma.square(), 1 - expected, rtol=1e-10, atol=1e-15)
    drift, diffusion = sde.chain_step(sde.times(range(n)), n)
    betas = GUIDED[f"{name}_{n}_betas"]
    torch.testing.assert_close(diffusion.square(), betas, rtol=1e-9, atol=0)
    torch.testing.assert_close(drift, (1 - betas).sqrt() - 1, rtol=1e-9, atol=0)


def test_sqrt_and_scaled_linear_schedules():
    n = 50
    alpha_bar = [(1 - math.sqrt(i / n + 1e-4)) / (1 - math.sqrt(1e-4)) for i in range(1, n)]
    got = (2 * DiscreteVPSDE.sqrt(n, min_log_snr=None).log_alphas[: n - 1]).exp()
    torch.testing.assert_close(got, torch.tensor(alpha_bar, dtype=torch.float64), rtol=1e-12, atol=0)
    betas = 1 - (2 * SCHEDULES["scaled_linear"].log_alphas.diff()).exp()
    torch.testing.assert_close(betas.sqrt().diff(), betas.sqrt().diff().mean().expand(998), rtol=1e-6, atol=0)
    assert float(betas[-1]) == pytest.approx(0.012)


@pytest.mark.parametrize("name", ["linear", "discrete"])
def test_continuous_time_equals_the_dpm_solver_schedule(name):
    table = DPM[name]
    sde = VPSDE() if name == "linear" else DiscreteVPSDE.from_betas(table["betas"])
    t = table["t"].double()
    inside = t >= sde.sampling_eps - 1e-7
    for got, expected, digits in (
        (sde.log_alpha(t), table["log_alpha"], 3e-6),
        (sde.alpha(t), table["alpha"], 1e-6),
        (sde.log_snr(t) / 2, table["lambda"], 5e-4),  # the published lambda cancels in float32 at small t
    ):
        # 1 - beta in float32 is off by half an ulp, 6e-8
        torch.testing.assert_close(got[inside], expected.double()[inside], rtol=digits, atol=2e-7)
    torch.testing.assert_close(sde.inverse_log_snr(sde.log_snr(t))[inside], t[inside], rtol=1e-12, atol=0)
    if name == "discrete":
        torch.testing.assert_close(sde.log_alphas, table["log_alpha_array"].double(), rtol=1e-6, atol=2e-7)
    for n in (10, 20):
        for spacing, published in (("linear", "time_uniform"), ("log_snr", "logSNR"), ("quadratic", "time_quadratic")):
            grid = time_grid("test", sde, spacing, n, 1 / 1000)
            digits = 5e-4 if spacing == "log_snr" else 1e-6
            torch.testing.assert_close(grid, table[f"steps_{published}_{n}"].double(), rtol=digits, atol=1e-7)


@pytest.mark.parametrize("n", [5, 10, 18, 40])
def test_karras_grid_equals_the_published_one(n):
    sde = VESDE(0.01, 80.0)
    grid = nodes(sde, time_grid("test", sde, "karras", n - 1, 1e-12))
    sigmas = [node.ratio for node in grid]
    torch.testing.assert_close(torch.tensor(sigmas), K_SIGMAS[f"karras_{n}"][:-1], rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_and_log_snr_are_inverse(name):
    sde = SCHEDULES[name]
    t = torch.linspace(sde.sampling_eps, 1, 777, dtype=torch.float64)
    torch.testing.assert_close(sde.inverse_log_snr(sde.log_snr(t)), t, rtol=1e-11, atol=0)
    levels = sde.times(range(sde.num_timesteps))
    torch.testing.assert_close(sde.log_alpha(levels), sde.log_alphas, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_drift_and_diffusion_follow_from_the_marginal(name):
    sde, step = SCHEDULES[name], 1e-7
    t = torch.linspace(sde.sampling_eps, 0.99, 31, dtype=torch.float64) + 1e-5  # off the kinks
    slope = (sde.log_alpha(t + step) - sde.log_alpha(t - step)) / (2 * step)
    torch.testing.assert_close(sde.drift_coefficient(t), slope, rtol=1e-5, atol=0)
    variance = (sde.sigma(t + step).square() - sde.sigma(t - step).square()) / (2 * step)
    g2 = variance - 2 * sde.drift_coefficient(t) * sde.sigma(t).square()
    torch.testing.assert_close(sde.diffusion(t).square(), g2, rtol=1e-4, atol=0)


def test_levels_without_signal_are_dropped_or_kept():
    assert DiscreteVPSDE.cosine().num_timesteps == 996  # as the DPM-Solver authors clip it
    assert DiscreteVPSDE.cosine(min_log_snr=None).num_timesteps == 1000
    zero = torch.cat([torch.linspace(0.99, 0.01, 99, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    sde = DiscreteVPSDE.from_alphas_cumprod(zero, min_log_snr=None)
    alpha, sigma = sde.marginal(sde.times(range(100)))
    assert not bool(alpha.isnan().any() | sigma.isnan().any())
    assert (float(alpha[-1]), float(sigma[-1])) == (0.0, 1.0)
    assert DiscreteVPSDE.from_alphas_cumprod(zero).num_timesteps == 99


def test_labels_of_timesteps():
    sde = SCHEDULES["linear"]
    t = sde.times([0, 10, 999, 499.4])
    assert Convention("noise", "timestep").labels(sde, t).tolist() == pytest.approx([0, 10, 999, 499.4], abs=1e-9)
    rounded = Convention("noise", "rounded_timestep").labels(sde, t)
    assert rounded.dtype == torch.int64
    assert rounded.tolist() == [0, 10, 999, 499]
    clipped = SCHEDULES["cosine"]
    label = Convention("noise", "timestep", num_scales=1000).labels(clipped, torch.tensor(0.5, dtype=torch.float64))
    assert float(label) == pytest.approx((0.5 - 1 / 996) * 1000)
    assert float(Convention("noise", "timestep", num_scales=100).labels(VPSDE(), torch.tensor(0.5))) == pytest.approx(
        49
    )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_fall_from_one_to_eps(name, spacing, steps):
    sde = SDES[name]
    times = time_grid("test", sde, spacing, steps, sde.sampling_eps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (float(times[0]), float(times[-1])) == (1.0, sde.sampling_eps)
    assert bool((times.diff() < 0).all())
    assert all(math.isfinite(node.log_ratio) for node in nodes(sde, times))
    even = {
        "linear": times,
        "quadratic": times.sqrt(),
        "log_snr": sde.log_snr(times),
        "karras": (-sde.log_snr(times) / 14).exp(),
    }[spacing]
    torch.testing.assert_close(even.diff(), even.diff().mean().expand(steps), rtol=1e-6, atol=0)


def test_the_clean_node_has_no_noise():
    assert CLEAN.ratio == 0
    assert CLEAN.log_ratio == math.inf


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiscreteVPSDE.from_betas([0.1]), ValueError, r"shape \(N,\), N >= 2, got \(1,\)"),
        (lambda: DiscreteVPSDE.from_betas([0.1, -0.2, 0.3]), ValueError, "it does not at index 1"),
        (lambda: DiscreteVPSDE.from_betas([0.1, float("nan")]), ValueError, "it does not at index 1"),
        (lambda: DiscreteVPSDE.from_alphas_cumprod([0.5, 0.6]), ValueError, "it does not at index 1"),
        (lambda: DiscreteVPSDE.linear(1), ValueError, "n, the number of noise levels, must be an integer >= 2, got 1"),
        (lambda: DiscreteVPSDE.cosine(2.5), ValueError, "must be an integer >= 2, got 2.5"),
        (lambda: time_grid("Who", VPSDE(), "even", 3, 0.1), ValueError, "Who: spacing must be one of linear, "),
        (lambda: time_grid("Who", VPSDE(), torch.ones(4), 3, 0.1), ValueError, "Who: spacing, given as times, must"),
        (lambda: time_grid("Who", VPSDE(), "karras", 3, 0.1, 0.5), ValueError, "Who: rho must be a finite number"),
        (
            lambda: Convention("noise", "timestep").labels(VPSDE(), torch.tensor(0.5)),
            ValueError,
            "label='timestep' needs num_scales with VPSDE, which has no levels",
        ),
        (lambda: Convention("noise", "timestep", num_scales=0), ValueError, "needs num_scales"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()

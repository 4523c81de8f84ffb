"""SDEs against closed forms in 50 digits, the golden tables, and each other."""

import math
from pathlib import Path

import mpmath
import pytest
import torch

from fastscore import VESDE, VPSDE, DiscreteVPSDE, SubVPSDE
from fastscore.sde import chain_index
from fastscore.testing.golden import load_cases

TABLES = Path(__file__).parent / "golden" / "sde_tables"
CASES = load_cases(TABLES, "score_sde")
CLASSES = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}
SDES = [VESDE(), VESDE(0.01, 348.0), VPSDE(), VPSDE(0.1, 12.0), SubVPSDE()]
TIMES = [1e-5, 1e-3, 0.1, 0.5, 1.0]


def make(case):
    args = dict(case.args["sde"])
    return CLASSES[args.pop("cls")](**{k: v for k, v in args.items() if k not in ("N", "T")}), args["N"]


def closed_forms(sde, t):
    """alpha, sigma, f, g and log-SNR at t in 50 digits, from the paper's formulas."""
    t = mpmath.mpf(t)
    if isinstance(sde, VESDE):
        low, high = mpmath.mpf(sde.sigma_min), mpmath.mpf(sde.sigma_max)
        sigma = low * (high / low) ** t
        alpha, f, g = mpmath.mpf(1), mpmath.mpf(0), sigma * mpmath.sqrt(2 * mpmath.log(high / low))
    else:
        b0, b1 = mpmath.mpf(sde.beta_min), mpmath.mpf(sde.beta_max)
        beta, integral = b0 + t * (b1 - b0), b0 * t + (b1 - b0) * t**2 / 2
        alpha, f = mpmath.exp(-integral / 2), -beta / 2
        if isinstance(sde, VPSDE):
            sigma, g = mpmath.sqrt(1 - mpmath.exp(-integral)), mpmath.sqrt(beta)
        else:
            sigma, g = 1 - mpmath.exp(-integral), mpmath.sqrt(beta * (1 - mpmath.exp(-2 * integral)))
    return alpha, sigma, f, g, mpmath.log(alpha**2 / sigma**2)


@pytest.mark.parametrize("sde", SDES, ids=str)
@pytest.mark.parametrize("t", TIMES)
def test_equals_closed_forms(sde, t):
    with mpmath.workdps(50):
        expected = closed_forms(sde, t)
        got = (*sde.marginal(t), sde.drift_coefficient(t), sde.diffusion(t), sde.log_snr(t))
        for name, value, exact in zip(("alpha", "sigma", "f", "g", "log_snr"), got, expected, strict=True):
            assert value.dtype == torch.float64
            error = abs(mpmath.mpf(float(value)) - exact)
            assert error <= 1e-12 * abs(exact), f"{name} at t={t}: {float(value)} against {exact}"


@pytest.mark.parametrize("sde", SDES, ids=str)
def test_inverse_log_snr(sde):
    t = torch.cat([torch.logspace(-5, 0, 200, dtype=torch.float64), torch.linspace(0.01, 1, 100, dtype=torch.float64)])
    # a log-SNR carries an absolute error of half an ulp, which for VE is that of t times log(sigma_max / sigma_min)
    torch.testing.assert_close(sde.inverse_log_snr(sde.log_snr(t)), t, rtol=1e-12, atol=4e-15)
    assert torch.all(sde.log_snr(t.sort().values).diff() <= 0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden_tables(case):
    sde, n = make(case)
    table = case.tensors
    t = table["t"].double()
    for got, name in (
        (sde.alpha(t), "mean_coeff_exact"),
        (sde.sigma(t), "std_exact"),
        (sde.drift_coefficient(t), "drift_coeff_exact"),
        (sde.diffusion(t), "diffusion_exact"),
    ):
        torch.testing.assert_close(got, table[name], rtol=1e-12, atol=0)
    f, g = sde.chain_step(t, n)
    # float32 in the published code, whose x - f x cancels: absolute for f, relative for G
    published = table["discretize_f"].double()
    torch.testing.assert_close(f.reshape(-1, 1, 1, 1) * table["x"].double(), published, rtol=1e-4, atol=3e-7)
    rtol = 2e-2 if isinstance(sde, SubVPSDE) else 1e-4  # published sub-VP std at t = 1e-5 is off by 1.2% (cancellation)
    torch.testing.assert_close(g, table["discretize_G"].double(), rtol=rtol, atol=0)
    log_prob = sde.prior_log_prob(table["prior_z"])
    torch.testing.assert_close(log_prob, table["prior_logp_exact"], rtol=1e-12, atol=0)
    torch.testing.assert_close(sde.drift(table["x"], t.float()), table["drift"], rtol=1e-5, atol=1e-7)
    if "discretize_index" in table and not isinstance(sde, SubVPSDE):
        assert torch.equal(chain_index(t, n), table["discretize_index"].long())


@pytest.mark.parametrize("case", [c for c in CASES if "subvp" not in c.id], ids=str)
def test_discretize_equals_published_chain(case):
    sde, n = make(case)
    chain, table = sde.discretize(n), case.tensors
    assert chain.times.shape == (n,)
    if isinstance(sde, VESDE):
        torch.testing.assert_close(chain.sigma, table["discrete_sigmas"].double(), rtol=2e-6, atol=0)
        torch.testing.assert_close(chain.diffusion.square().cumsum(0).sqrt(), chain.sigma, rtol=1e-12, atol=0)
    else:
        torch.testing.assert_close(chain.diffusion.square(), table["discrete_betas"].double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(chain.alpha, table["sqrt_alphas_cumprod"].double(), rtol=1e-4, atol=0)
        torch.testing.assert_close(chain.sigma, table["sqrt_1m_alphas_cumprod"].double(), rtol=1e-3, atol=0)
        torch.testing.assert_close((1 + chain.drift).cumprod(0), chain.alpha, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE()], ids=str)
def test_chain_tends_to_the_sde(sde):
    """One step of a long chain is one Euler-Maruyama step of the SDE."""
    n, t = 100_000, torch.tensor([0.25, 0.75], dtype=torch.float64)
    f, g = sde.chain_step(t, n)
    torch.testing.assert_close(f * n, sde.drift_coefficient(t), rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(g * math.sqrt(n), sde.diffusion(t), rtol=1e-3, atol=0)


def test_prior_sample_and_log_prob():
    torch.manual_seed(0)
    sde = VESDE(0.01, 50.0)
    x = sde.prior_sample((20_000, 2), dtype=torch.float64)
    assert abs(float(x.std()) / 50 - 1) < 5 / math.sqrt(2 * x.numel())
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 50.0)
    torch.testing.assert_close(sde.prior_log_prob(x[:10]), normal.log_prob(x[:10]).sum(1))
    assert VPSDE().prior_sample((2, 3, 4), device="meta").shape == (2, 3, 4)


def test_times_may_be_floats_or_tensors_of_any_dtype():
    sde = VPSDE()
    assert torch.equal(sde.sigma(0.5), sde.sigma(torch.tensor(0.5, dtype=torch.float32)))
    assert sde.sigma(torch.zeros(3, 2)).shape == (3, 2)


@pytest.mark.parametrize(
    ("make_sde", "message"),
    [
        (
            lambda: VESDE(0.0, 1.0),
            r"VESDE: sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, got sigma_min=0.0",
        ),
        (lambda: VESDE(2.0, 1.0), r"got sigma_min=2.0 and sigma_max=1.0"),
        (
            lambda: VPSDE(-0.1, 20.0),
            r"VPSDE: beta_min and beta_max must satisfy 0 < beta_min <= beta_max, got beta_min=-0.1",
        ),
        (lambda: SubVPSDE(0.1, math.inf), r"SubVPSDE: .* beta_max=inf"),
        (lambda: VPSDE().discretize(0), r"the number of steps must be an integer >= 1, got 0"),
        (lambda: VPSDE().discretize(20), r"a chain of 20 steps has beta_max / 20 = 1 >= 1 and does not exist"),
        (lambda: VESDE().discretize(2.5), r"must be an integer >= 1, got 2.5"),
    ],
)
def test_bad_arguments(make_sde, message):
    with pytest.raises(ValueError, match=message):
        make_sde()


@pytest.mark.parametrize("sde", [*SDES, DiscreteVPSDE.cosine(100)], ids=str)
def test_a_part_of_the_time_is_the_same_sde(sde):
    part = sde.until(0.5).until(0.4)
    assert (part.T, sde.T, type(part)) == (0.4, 1.0, type(sde))
    times = torch.tensor([0.02, 0.3, 0.4], dtype=torch.float64)
    for name in ("alpha", "sigma", "drift_coefficient", "diffusion", "log_snr"):
        assert torch.equal(getattr(part, name)(times), getattr(sde, name)(times))
    for t in (0.0, 0.41, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"until: t must lie in \(0, 0\.4\]"):
            part.until(t)
    for needs_prior in (lambda: part.prior_sample((2, 3)), lambda: part.prior_log_prob(torch.zeros(2, 3))):
        with pytest.raises(ValueError, match=r"sde must reach t = 1, its prior, got one that ends at 0\.4"):
            needs_prior()
    part.until(0.4)
    sde.until(1.0).prior_sample((2, 3))

"""score_sde's functions under its own seeds: the published samples, tables and errors that are errors here, too."""

import copy
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastscore
from fastscore.compat import score_sde
from fastscore.compat.score_sde.score import convention_of
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.testing.score_sde import make_sde, scaler_of, seeded

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "samplers"
PC, ODE = load_cases(FOLDER, "score_sde_pc"), load_cases(FOLDER, "score_sde_ode")
TABLES = load_cases(GOLDEN / "sde_tables", "score_sde")
SHAPE = (2, 3, 4, 4)
SDES = (score_sde.VESDE, score_sde.VPSDE, score_sde.subVPSDE)


def identity(x):
    return x


def network(x, labels):
    return 0.3 * torch.tanh(x) + 1e-4 * labels.to(x.dtype).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("case", PC, ids=str)
def test_pc_sampler_equals_published(case):
    args, model, after = case.args, golden_model(case, load_mixture(FOLDER)), seeded(case)
    model.record = True
    sampler = score_sde.get_pc_sampler(
        make_sde(args["sde"]),
        args["shape"],
        score_sde.get_predictor(args["predictor"]),
        score_sde.get_corrector(args["corrector"]),
        scaler_of(case),
        args["snr"],
        n_steps=args["n_steps"],
        probability_flow=args["probability_flow"],
        continuous=args["continuous"],
        denoise=args["denoise"],
        eps=args["eps"],
        device=args["device"],
    )
    x, nfe = sampler(model)
    assert torch.equal(torch.get_rng_state(), after)
    assert nfe == case.scalars["nfe_reported"]
    assert model.calls == case.scalars["model_calls"]
    # rounding alone, of at most 60 steps; the exact standard deviation of VP would be off by up to 2.7e-5
    bound = 2e-6 * max(1.0, case.scalars["result_abs_max"])
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {error:.2e} of {bound:.2e}")
    assert error <= bound
    if model.labels:
        labels = torch.stack([label[0].double() for label in model.labels])
        expected = case.tensors["call_labels"].double().reshape(len(labels), -1)[:, 0]
        torch.testing.assert_close(labels, expected, rtol=2e-6, atol=2e-5)


# its first steps follow from the rounding of the drift, in which one bit of a state makes a difference
OTHER_STEPS = "ode.subvp.rtol1e-05.atol1e-05.eps0.001"


@pytest.mark.parametrize("case", ODE, ids=str)
def test_ode_sampler_equals_published(case):
    args, model, after = case.args, golden_model(case, load_mixture(FOLDER)), seeded(case)
    sampler = score_sde.get_ode_sampler(
        make_sde(args["sde"]),
        args["shape"],
        scaler_of(case),
        denoise=args["denoise"],
        rtol=args["rtol"],
        atol=args["atol"],
        method=args["method"],
        eps=args["eps"],
        device="cpu",
    )
    x, nfe = sampler(model, case.tensors["z"]) if args["z"] else sampler(model)
    assert torch.equal(torch.get_rng_state(), after)
    if case.id != OTHER_STEPS:
        assert nfe == case.scalars["nfe"]
        assert model.calls == case.scalars["model_calls"]
    assert model.calls == nfe + args["denoise"]
    assert x.dtype == torch.float32
    error = float((x - case.tensors["result"]).abs().max())
    print(f"{case.id}: {nfe} calls of {case.scalars['nfe']}, {error:.2e} of {case.tolerance:.2e}")
    assert error <= case.tolerance


@pytest.mark.parametrize("case", TABLES, ids=str)
def test_sdes_equal_published_tables(case):
    sde, table = make_sde(case.args["sde"]), case.tensors
    t, x = table["t"], table["x"]
    ones = torch.ones_like(x)
    close = {"rtol": 1e-6, "atol": 1e-7}
    for got, name in (
        (sde.marginal_prob(ones, t)[0][:, 0, 0, 0], "mean_coeff"),
        (sde.marginal_prob(x, t)[1], "std"),
        (sde.sde(ones, t)[0][:, 0, 0, 0], "drift_coeff"),
        (sde.sde(x, t)[0], "drift"),
        (sde.sde(x, t)[1], "diffusion"),
        (sde.prior_logp(table["prior_z"]), "prior_logp"),
    ):
        torch.testing.assert_close(got, table[name], **close)
    # published in float32: x - f x of VP and differences of neighboring squares of VE cancel
    torch.testing.assert_close(sde.discretize(x, t)[0], table["discretize_f"], rtol=1e-6, atol=3e-7)
    torch.testing.assert_close(sde.discretize(x, t)[1], table["discretize_G"], rtol=2e-5, atol=0)
    for name in (
        "discrete_sigmas",
        "discrete_betas",
        "alphas_cumprod",
        "sqrt_alphas_cumprod",
        "sqrt_1m_alphas_cumprod",
    ):
        if name in table:
            torch.testing.assert_close(getattr(sde, name), table[name], rtol=2e-6, atol=0)
    if "x_rev" not in table:
        return
    x = table["x_rev"]
    score_fn = score_sde.get_score_fn(sde, golden_model(case, load_mixture(FOLDER)), continuous=True)
    torch.testing.assert_close(score_fn(x, t), table["score"], rtol=1e-5, atol=1e-5)
    for name, flow in (("sde", False), ("pf", True)):
        reverse = sde.reverse(score_fn, probability_flow=flow)
        drift, diffusion = reverse.sde(x, t)
        torch.testing.assert_close(drift, table[f"rev_drift_{name}"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(diffusion, torch.zeros_like(t) if flow else table["diffusion"], **close)
        f, G = reverse.discretize(x, t)
        torch.testing.assert_close(f, table[f"rev_f_{name}"], rtol=5e-5, atol=2e-6)
        torch.testing.assert_close(G, table[f"rev_G_{name}"], rtol=2e-5, atol=0)


@pytest.mark.parametrize(("cls", "continuous"), list(itertools.product(SDES, [True, False])))
def test_the_samplers_read_a_network_as_its_score_fn_does(cls, continuous):
    """At all 1000 times of the default grid: labels, and the score from the output, with their rounding in float32."""
    sde, given = cls(), []

    def ones(x, labels):
        given.append(labels)
        return torch.ones_like(x)

    times = torch.linspace(1, 1e-5 if cls is score_sde.VESDE else 1e-3, sde.N, dtype=torch.float64)
    score = score_sde.get_score_fn(sde, ones, continuous=continuous)(torch.zeros(sde.N, 1), times.float())
    convention = convention_of(sde, continuous)
    p, q = convention.coefficients(sde.engine, times)
    assert not p.any()
    torch.testing.assert_close(q.float(), score[:, 0], rtol=1e-6, atol=0)
    labels = convention.labels(sde.engine, times)
    assert given[0].dtype == (torch.int64 if labels.dtype == torch.int64 else torch.float32)
    torch.testing.assert_close(labels.to(given[0].dtype), given[0], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("cls", SDES)
def test_predictors_and_correctors_make_the_steps_of_the_sampler(cls, flow):
    """Also what only crashed: Euler-Maruyama with probability_flow, and correctors with sub-VP."""
    sde, eps = cls(N=22), 1e-3
    for predictor, corrector, continuous in itertools.product(
        ["euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none"],
        ["langevin", "ald", "none"],
        [True, False],
    ):
        if predictor == "ancestral_sampling" and (flow or cls is score_sde.subVPSDE):
            continue
        score_fn = score_sde.get_score_fn(sde, network, continuous=continuous)
        predict = score_sde.get_predictor(predictor)(sde, score_fn, flow)
        correct = score_sde.get_corrector(corrector)(sde, score_fn, 0.1, 2)
        for denoise in (True, False):
            torch.manual_seed(3)
            x = mean = sde.prior_sampling(SHAPE)
            for t in torch.linspace(1, eps, sde.N):
                x, mean = correct.update_fn(x, t.expand(2))
                x, mean = predict.update_fn(x, t.expand(2))
            torch.manual_seed(3)
            sampler = score_sde.get_pc_sampler(
                sde, SHAPE, predictor, corrector, identity, 0.1, 2, flow, continuous, denoise, eps, "cpu"
            )
            y, _ = sampler(network)
            expected = mean if denoise else x
            error = float((y - expected).abs().max() / expected.abs().max().clamp(min=1))
            assert error < 2e-5, (predictor, corrector, continuous, denoise, error)


@pytest.mark.parametrize("cls", SDES)
def test_update_means_leave_out_the_noise(cls):
    sde, t = cls(N=40), torch.tensor([0.3, 0.9])
    score_fn = score_sde.get_score_fn(sde, network, continuous=True)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    moved, mean = score_sde.EulerMaruyamaPredictor(sde, score_fn).update_fn(x, t)
    torch.manual_seed(1)
    drift, diffusion = sde.reverse(score_fn).sde(x, t)
    torch.testing.assert_close(mean, x - drift / 40, rtol=1e-5, atol=1e-5 * float(drift.abs().max()))
    noise = (diffusion / 40**0.5).reshape(-1, 1, 1, 1) * torch.randn(SHAPE)
    torch.testing.assert_close(moved - mean, noise, rtol=1e-4, atol=1e-6 * float(moved.abs().max()))
    torch.manual_seed(1)
    moved, mean = score_sde.AnnealedLangevinDynamics(sde, score_fn, 0.16, 1).update_fn(x, t)
    step = ((mean - x) / score_fn(x, t)).mean((1, 2, 3))
    torch.manual_seed(1)
    noise = (2 * step).sqrt().reshape(-1, 1, 1, 1) * torch.randn(SHAPE)
    torch.testing.assert_close(moved - mean, noise, rtol=1e-3, atol=1e-5 * float(moved.abs().max()))


@pytest.mark.parametrize("n", [2, 25, 1000])
def test_an_index_is_found_in_float32(n):
    """i / (n - 1) in float32 is often a little below, and so is not index i in float64."""
    sde = score_sde.VESDE(N=n)
    t = torch.cat([torch.linspace(0, 1, n), torch.linspace(1, 1e-5, n)])
    index = (t * (n - 1)).long()
    below = torch.where(index > 0, sde.discrete_sigmas[index - 1], 0.0)
    expected = (sde.discrete_sigmas[index].double() ** 2 - below.double() ** 2).sqrt()
    _, G = sde.discretize(torch.zeros(2 * n, 1), t)
    torch.testing.assert_close(G.double(), expected, rtol=1e-4, atol=0)  # neighbors are 0.9% apart, or more


def config(**sampling):
    return SimpleNamespace(
        sampling=SimpleNamespace(**sampling), training=SimpleNamespace(continuous=True), device=torch.device("cpu")
    )


def test_sampling_fn_takes_everything_from_the_configuration():
    sde, shift = score_sde.VPSDE(N=24), lambda x: (x + 1) / 2
    given = config(
        method="PC", predictor="Euler_Maruyama", corrector="ALD", snr=0.1, n_steps_each=2, probability_flow=True,
        noise_removal=False,
    )  # fmt: skip
    for continuous in (True, False):
        given.training.continuous = continuous
        torch.manual_seed(0)
        x, nfe = score_sde.get_sampling_fn(given, sde, SHAPE, shift, 0.01)(network)
        torch.manual_seed(0)
        expected, _ = score_sde.get_pc_sampler(
            sde, SHAPE, "euler_maruyama", "ald", shift, 0.1, 2, True, continuous, False, 0.01, "cpu"
        )(network)
        assert torch.equal(x, expected)
        assert nfe == 24 * 3
    given = config(method="ode", noise_removal=True)
    torch.manual_seed(0)
    x, nfe = score_sde.get_sampling_fn(given, sde, SHAPE, shift, 0.01)(network)
    torch.manual_seed(0)
    expected, calls = score_sde.get_ode_sampler(sde, SHAPE, shift, denoise=True, eps=0.01, device="cpu")(network)
    assert torch.equal(x, expected)
    assert nfe == calls


def test_one_sampling_fn_serves_several_networks_and_batches():
    sde = score_sde.VESDE(N=5)
    sampler = score_sde.get_pc_sampler(
        sde, SHAPE, score_sde.ReverseDiffusionPredictor, None, identity, 0.1, continuous=True, eps=1e-5, device="cpu"
    )
    torch.manual_seed(0)
    first, second, other = sampler(network)[0], sampler(network)[0], sampler(lambda x, labels: -x / 100)[0]
    torch.manual_seed(0)
    assert torch.equal(sampler(network)[0], first)
    assert not torch.equal(first, second)
    assert not torch.equal(second, other)


def test_a_network_keeps_its_mode_and_is_evaluated_without_dropout():
    class Net(torch.nn.Module):
        seen = True

        def forward(self, x, labels):
            self.seen = self.seen and not self.training
            assert not torch.is_grad_enabled()
            return -0.1 * x

    sde, model = score_sde.VPSDE(N=21), Net()
    for sampler in (
        score_sde.get_pc_sampler(sde, SHAPE, "none", "ald", identity, 0.1, continuous=True, device="cpu"),
        score_sde.get_ode_sampler(sde, SHAPE, identity, denoise=True, rtol=0.1, atol=0.1, device="cpu"),
    ):
        model.train()
        sampler(model)
        assert model.training
    assert model.seen
    score_sde.get_score_fn(sde, model, train=False)  # nothing happens before it is called
    assert model.training


def test_ode_sampler_starts_from_a_latent_and_leaves_it():
    sde = score_sde.VPSDE()
    sampler = score_sde.get_ode_sampler(sde, SHAPE, identity, rtol=1e-2, atol=1e-2, device="cpu")
    torch.manual_seed(0)
    z = torch.randn(*SHAPE)
    kept = copy.deepcopy(z)
    given, _ = sampler(network, z)
    torch.manual_seed(0)
    drawn, _ = sampler(network)
    assert torch.equal(given, drawn)
    assert torch.equal(z, kept)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: score_sde.VESDE(N=0), ValueError, "VESDE: N must be at least 1, got 0"),
        (lambda: score_sde.VPSDE(N=10.0), TypeError, "VPSDE: N must be an integer, got 10.0"),
        (lambda: score_sde.VESDE(sigma_min=60), ValueError, "sigma_min and sigma_max"),
        (lambda: score_sde.subVPSDE(beta_min=-1), ValueError, "beta_min and beta_max"),
        (lambda: pc(sde="ve"), TypeError, "get_pc_sampler: sde must be an SDE of fastscore.compat.score_sde, got str"),
        (lambda: pc(shape=()), ValueError, "get_pc_sampler: shape must be"),
        (lambda: pc(shape=(2, -1)), ValueError, "get_pc_sampler: shape must be"),
        (lambda: pc(predictor="ancestral"), ValueError, "name must be one of euler_maruyama.*got 'ancestral'"),
        (lambda: pc(predictor=score_sde.LangevinCorrector), TypeError, "predictor must be one of.*LangevinCorrector"),
        (
            lambda: pc(corrector="mala"),
            ValueError,
            "name must be one of langevin, ald, none, got 'mala'",
        ),
        (lambda: pc(corrector=3), TypeError, "corrector must be one of.*got 3"),
        (lambda: pc(snr=-1.0), ValueError, "snr must be"),
        (lambda: pc(n_steps=-1), ValueError, "get_pc_sampler: n_steps must be at least 0, got -1"),
        (lambda: pc(shape=4), ValueError, "get_pc_sampler: shape must be.*got 4"),
        (lambda: ode(sde=score_sde.VPSDE(N=10), denoise=True), ValueError, "a chain of 10 steps"),
        (lambda: pc(eps=0.0), ValueError, "eps must be"),
        (lambda: pc(inverse_scaler=2), TypeError, "inverse_scaler must be callable, got int"),
        (lambda: pc(sde=score_sde.VPSDE(N=10)), ValueError, "a chain of 10 steps"),
        (
            lambda: pc(predictor="ancestral_sampling", probability_flow=True),
            ValueError,
            "probability_flow must be",
        ),
        (
            lambda: pc(predictor="ancestral_sampling", sde=score_sde.subVPSDE()),
            NotImplementedError,
            "sde must be VESDE or VPSDE, got subVPSDE",
        ),
        (lambda: pc()(None), TypeError, "get_pc_sampler: model must be callable as model"),
        (lambda: ode(method="RK23"), ValueError, "get_ode_sampler: method must be 'RK45', got 'RK23'"),
        (lambda: ode(rtol=-1.0), ValueError, "rtol must be"),
        (lambda: ode(eps=2.0), ValueError, "eps must be"),
        (lambda: ode()(None), TypeError, "get_ode_sampler: model must be callable as model"),
        (lambda: ode()(network, "z"), TypeError, "get_ode_sampler: z must be a tensor, got str"),
        (lambda: ode()(network, torch.zeros(3, 3)), ValueError, "get_ode_sampler: z must have shape"),
        (lambda: score_sde.get_score_fn(None, network), TypeError, "get_score_fn: sde must be an SDE"),
        (
            lambda: score_sde.get_sampling_fn(config(method="dpm"), score_sde.VPSDE(), SHAPE, identity, 1e-3),
            ValueError,
            "config.sampling.method must be 'pc' or 'ode', got 'dpm'",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def pc(**changed):
    options = {
        "sde": score_sde.VPSDE(N=25),
        "shape": SHAPE,
        "predictor": "reverse_diffusion",
        "corrector": "none",
        "inverse_scaler": identity,
        "snr": 0.16,
        "device": "cpu",
    }
    return score_sde.get_pc_sampler(**(options | changed))


def ode(**changed):
    options = {"sde": score_sde.VPSDE(), "shape": SHAPE, "inverse_scaler": identity, "device": "cpu"}
    return score_sde.get_ode_sampler(**(options | changed))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("make_sampler", [pc, ode])
def test_a_device_that_is_not_there_is_refused(make_sampler):
    with pytest.raises(ValueError, match="device must be one that torch sees, got 'cuda'"):
        make_sampler(device="cuda")


def test_samples_that_are_not_finite_are_reported():
    for sampler in (pc(sde=score_sde.VESDE(N=5)), ode()):
        with pytest.raises(fastscore.NonFiniteError):
            sampler(lambda x, labels: x / 0)


def test_the_number_of_steps_cannot_be_set():
    """Its tables would be those of another number."""
    with pytest.raises(AttributeError, match="N"):
        score_sde.VPSDE().N = 10

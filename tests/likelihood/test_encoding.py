"""Codes by the probability-flow ODE: closed forms, the way back, and what is refused."""

import math

import pytest
import torch

import fastscore
from fastscore import (
    VESDE,
    VPSDE,
    Convention,
    DDIMInverseSampler,
    DDIMSampler,
    DiscreteVPSDE,
    NonFiniteError,
    SubVPSDE,
    decode,
    encode,
)
from fastscore.testing.networks import Smooth
from fastscore.testing.statistics import (
    AnalyticModel,
    CountingModel,
    Gaussian,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
PERTURB = {"ve": ve_perturbation, "vp": vp_perturbation(), "subvp": vp_perturbation(subvp=True)}
CENTERED = Gaussian(torch.zeros(3, 1, 1), torch.diag(torch.tensor([0.05, 0.2, 0.4])).double())


def network(name, law):
    return AnalyticModel(law, PERTURB[name], "score" if name == "ve" else "noise")


def coded(name, x, **options):
    """Latent and the way back, for the mixture."""
    sde, model = SDES[name], network(name, mixture_2d())
    latent = encode(sde, model, x, **options)
    return latent, decode(sde, model, latent, **options)


@pytest.mark.parametrize("end", [1.0, 0.4])
@pytest.mark.parametrize("name", SDES)
def test_the_latent_of_gaussian_data(name, end):
    """The flow of a Gaussian scales each axis by the ratio of its standard deviations."""
    sde = SDES[name].until(end)
    x = CENTERED.sample(4, seed=1)
    axes = [CENTERED.covariance.diag() * a**2 + s**2 for a, s in (sde.marginal(t) for t in (sde.sampling_eps, end))]
    scale = (axes[1] / axes[0]).sqrt()[:, None, None]
    latent = encode(sde, network(name, CENTERED), x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(latent, x * scale, rtol=1e-6, atol=1e-6)
    back = decode(sde, network(name, CENTERED), latent, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    for solver, order, steps in (("rk4", 4, 30), ("heun", 2, 60), ("euler", 1, 200), ("ddim", 1, 200)):
        errors = []
        for n in (steps, 2 * steps):
            latent = encode(sde, network(name, CENTERED), x, solver=solver, steps=n, spacing="log_snr")
            errors.append(float(((latent / scale - x) / x).abs().max()))
        print(f"{name} to {end}, {solver}: {errors}")
        assert math.log2(errors[0] / errors[1]) > order - 0.3
        assert errors[1] < 0.1


@pytest.mark.parametrize("name", SDES)
def test_the_round_trip_is_as_good_as_the_tolerance(name):
    """Of a mixture: between its modes the flow back multiplies errors, here by less than 100."""
    x = mixture_2d().sample(16, seed=2)
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        _, back = coded(name, x, rtol=tolerance, atol=tolerance)
        errors.append(float((back - x).abs().max()))
        assert errors[-1] < 100 * tolerance
    print(f"{name}: {errors}")
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 3), ("rk4", 5), ("ddim", 1)])
@pytest.mark.parametrize("name", SDES)
def test_the_round_trip_of_fixed_steps_converges(name, solver, order):
    """With the order of the method, and one more where it is even: the first errors there and back cancel."""
    x = mixture_2d().sample(16, seed=3)
    errors = []
    for steps in (75, 150, 300):
        _, back = coded(name, x, solver=solver, steps=steps, spacing="log_snr")
        errors.append(float((back - x).abs().mean()))
    orders = [math.log2(errors[i] / errors[i + 1]) for i in range(2)]
    print(f"{name} {solver}: errors {errors}, orders {orders}")
    assert orders[1] == pytest.approx(order, abs=0.1)
    assert errors[2] < {1: 0.03, 3: 1e-5, 5: 1e-9}[order]


def test_data_in_prior_out():
    latent, _ = coded("vp", mixture_2d().sample(4000, seed=5), solver="rk4", steps=40, spacing="log_snr")
    assert float(latent.mean()) == pytest.approx(0, abs=0.05)
    assert float(latent.std()) == pytest.approx(1, abs=0.05)


def test_ddim_is_the_inverse_sampler_on_the_levels_of_a_schedule():
    sde, x = DiscreteVPSDE.linear(100, 1e-3, 0.2), mixture_2d().sample(3, seed=6)
    options = {"steps": 20, "spacing": "leading", "clip": 2.0, "convention": Convention("noise", "timestep")}
    latent = encode(sde, Smooth(), x, solver="ddim", **options)
    assert torch.equal(latent, DDIMInverseSampler(sde, Smooth(), **options).sample(x))
    back = decode(sde, Smooth(), latent, solver="ddim", **options)
    assert torch.equal(back, DDIMSampler(sde, Smooth(), denoise=False, **options).sample(latent))


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_network_calls_and_the_bar(norm, capsys):
    x = mixture_2d().sample(5, seed=7)
    model = CountingModel(network("vp", mixture_2d()))
    latent, info = encode(SDES["vp"], model, x, rtol=1e-3, atol=1e-3, norm=norm, progress=True, return_info=True)
    assert "sampling" in capsys.readouterr().err
    assert int(info.nfe.sum()) == model.samples
    assert info.finished.all()
    assert info.t.tolist() == [1.0] * 5
    _, info = encode(SDES["vp"], model, x, solver="heun", steps=6, return_info=True)
    assert info.nfe == 12
    assert [step.t_next for step in info.plan.steps][-1] == 1
    assert latent.shape == x.shape


def test_a_sample_does_not_depend_on_its_batch():
    x = mixture_2d().sample(6, seed=8)
    for options in ({"rtol": 1e-4, "atol": 1e-4}, {"solver": "rk4", "steps": 10}, {"solver": "ddim", "steps": 10}):
        (whole, back), (some, again) = coded("vp", x, **options), coded("vp", x[[4, 1]], **options)
        torch.testing.assert_close(some, whole[[4, 1]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again, back[[4, 1]], rtol=1e-12, atol=1e-12)


def test_temperature():
    x, model = mixture_2d().sample(4, seed=9), network("vp", mixture_2d())
    options = {"solver": "heun", "steps": 20}
    latent = encode(SDES["vp"], model, x, **options)
    kept = latent.clone()
    cool = decode(SDES["vp"], model, latent, temperature=0.5, **options)
    assert torch.equal(cool, decode(SDES["vp"], model, 0.5 * latent, **options))
    assert torch.equal(latent, kept)
    assert decode(SDES["vp"], model, latent, temperature=0.0, **options).std(0).max() < 1e-12


def test_a_bundled_network():
    """Digits come back, by 48 calls each way, and their latents look like noise."""
    model = fastscore.models.load("mnist32")
    digits = fastscore.sampler("dpmpp-2m", model.sde, model, steps=10).sample((2, 1, 32, 32), seed=1)
    options = {"solver": "rk4", "steps": 12, "spacing": "log_snr"}
    latent = encode(model.sde, model, digits, **options)
    assert latent.dtype == torch.float32
    assert float(latent.std()) == pytest.approx(1, abs=0.15)
    error = (decode(model.sde, model, latent, **options) - digits).abs()
    print(f"round trip: mean {float(error.mean()):.1e}, largest {float(error.max()):.1e}")
    assert float(error.mean()) < 3e-3


@pytest.mark.slow
def test_a_bundled_network_with_adaptive_steps():
    """Its embedding of time makes it waver by 1% with period 2 pi / 999, so that steps have to be shorter than that
    before the error falls in proportion to the tolerance.
    """
    model = fastscore.models.load("mnist32")
    digits = fastscore.sampler("dpmpp-2m", model.sde, model, steps=15).sample((2, 1, 32, 32), seed=1)
    errors = []
    for tolerance in (1e-3, 1e-4, 1e-5):
        options = {"rtol": tolerance, "atol": tolerance}
        back = decode(model.sde, model, encode(model.sde, model, digits, **options), **options)
        errors.append(float((back - digits).abs().mean()))
    print(errors)
    assert errors[0] > 2 * errors[1] > 3 * errors[2]
    assert errors[2] < 2.5e-3


def test_what_does_not_arrive_or_is_not_finite_is_told_in_its_own_time():
    x, model = mixture_2d().sample(2), network("vp", mixture_2d())
    with pytest.warns(RuntimeWarning, match="encode: some samples have not reached t = 1 within 2 trials") as caught:
        _, info = encode(SDES["vp"], model, x, max_steps=2, return_info=True)
    assert caught[0].filename == __file__
    assert 1e-3 < float(info.t.max()) < 1
    with pytest.raises(NonFiniteError, match=r"encode: the error of trial 0 from t = 0\.001 is not finite"):
        encode(SDES["vp"], lambda x, label: x / 0, x)


@pytest.mark.parametrize("function", [encode, decode])
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"solver": "rk23"}, ValueError, "solver must be one of rk45, euler, heun, rk4, ddim, got 'rk23'"),
        ({"steps": 10}, TypeError, "solver='rk45' has no option 'steps'; it takes rtol, atol, norm, max_steps"),
        ({"solver": "heun", "rtol": 1e-3}, TypeError, "solver='heun' has no option 'rtol'; it takes steps, spacing"),
        ({"solver": "ddim", "eta": 1.0}, TypeError, "solver='ddim' has no option 'eta'"),
        ({"denoise": True}, TypeError, "solver='rk45' has no option 'denoise'"),
        ({"rtol": -1.0}, ValueError, "rtol must be"),
        ({"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
        ({"solver": "rk4", "steps": 0}, ValueError, "steps must be at least 1"),
    ],
)
def test_bad_options_are_named_before_any_work(function, options, error, words):
    model = CountingModel(network("vp", mixture_2d()))
    with pytest.raises(error, match=words):
        function(SDES["vp"], model, mixture_2d().sample(2), **options)
    assert model.calls == 0


def test_bad_data_is_named():
    x, model = mixture_2d().sample(2), network("vp", mixture_2d())
    with pytest.raises(TypeError, match=r"encode: x must be float32, .* got torch\.int64"):
        encode(SDES["vp"], model, x.long())
    with pytest.raises(TypeError, match="decode: latent must be a tensor, got tuple"):
        decode(SDES["vp"], model, (2, 1, 1))
    with pytest.raises(ValueError, match="decode: temperature must be a finite number at least 0, got -1"):
        decode(SDES["vp"], model, x, temperature=-1)
    with pytest.raises(ValueError, match="encode: spacing must end where there is noise, got t = 0"):
        encode(SDES["vp"], model, x, solver="euler", steps=2, spacing=torch.tensor([1.0, 0.5, 0.0]))

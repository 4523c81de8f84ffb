"""Denoising score matching: golden losses of the published code, conventions, times."""

from pathlib import Path

import pytest
import torch

from fastscore.score import Convention
from fastscore.sde import VESDE, VPSDE, SubVPSDE
from fastscore.testing.golden import golden_model, load_cases, load_mixture
from fastscore.training.losses import denoising_loss, draw_times

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = load_cases(GOLDEN / "losses", "score_sde")


def sde_of(options):
    if options["cls"] == "VESDE":
        return VESDE(options["sigma_min"], options["sigma_max"])
    kind = {"VPSDE": VPSDE, "subVPSDE": SubVPSDE}[options["cls"]]
    return kind(options["beta_min"], options["beta_max"])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden(case):
    tensors, analytic = case.tensors, golden_model(case, load_mixture(GOLDEN / "samplers"))
    gain = torch.tensor(case.args["gain"], requires_grad=True)
    seen = {}

    def network(x, labels):
        seen.update(x=x, labels=labels)
        return gain * analytic(x, labels)

    loss = denoising_loss(
        network,
        sde_of(case.args["sde"]),
        tensors["batch"],
        tensors["t"],
        tensors["z"],
        weighting="likelihood" if case.args["likelihood_weighting"] else "noise",
        reduce_mean=case.args["reduce_mean"],
    ).mean()
    loss.backward()
    torch.testing.assert_close(loss, tensors["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(gain.grad, tensors["grad_gain"], rtol=1e-5, atol=0)
    torch.testing.assert_close(seen["x"], tensors["model_x"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(seen["labels"], tensors["model_label"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), SubVPSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
def test_a_perfect_network_has_no_loss(sde, prediction):
    """Whatever it predicts: one sample repeated is data whose noise can be told exactly."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=generator).expand(4, -1, -1, -1)
    noise = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    convention = Convention(prediction, "time")
    alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in sde.marginal(t))

    def network(x, labels):
        x = x / convention.input_scale(sde, t).reshape(-1, 1, 1, 1)
        p, q = (value.reshape(-1, 1, 1, 1) for value in convention.coefficients(sde, t, "noise"))
        return ((x - alpha * x0) / sigma - p * x) / q

    loss = denoising_loss(network, sde, x0, t, noise, convention=convention)
    assert loss.shape == (4,)
    assert loss.max() < 1e-20
    off = denoising_loss(lambda x, labels: network(x, labels) + 1, sde, x0, t, noise, convention=convention)
    assert off.min() > 1e-8


def test_loss_is_one_figure_per_sample():
    sde, t = VPSDE(), torch.tensor([0.2, 0.6])
    x0, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    noise[1] = 3

    def silent(x, labels):
        return torch.zeros_like(x)

    torch.testing.assert_close(denoising_loss(silent, sde, x0, t, noise), torch.tensor([1.0, 9.0]))
    summed = denoising_loss(silent, sde, x0, t, noise, reduce_mean=False)
    torch.testing.assert_close(summed, torch.tensor([2.0, 18.0]))
    weighted = denoising_loss(silent, sde, x0, t, noise, weighting="likelihood")
    weight = sde.diffusion(t).square() / sde.sigma(t).square()
    torch.testing.assert_close(weighted, (torch.tensor([1.0, 9.0]) * weight).float())


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v", "edm"])
def test_prediction_weighting_is_the_error_of_the_output(prediction):
    """A network off by 0.5 everywhere in what it predicts has that loss at all times."""
    sde, convention = VPSDE(), Convention(prediction, "time")
    t = torch.tensor([0.01, 0.3, 0.999], dtype=torch.float64)
    alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in sde.marginal(t))
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    p, q = (value.reshape(-1, 1, 1, 1) for value in convention.coefficients(sde, t, "noise"))

    def network(x, labels):
        return (noise - p * (alpha * x0 + sigma * noise)) / q + 0.5

    loss = denoising_loss(network, sde, x0, t, noise, convention=convention, weighting="prediction")
    torch.testing.assert_close(loss, torch.full((3,), 0.25, dtype=torch.float64), rtol=1e-6, atol=0)


def test_unknown_weighting_is_refused():
    x0 = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match="weighting must be one of noise, likelihood, prediction, got 'snr'"):
        denoising_loss(lambda x, t: x, VPSDE(), x0, torch.ones(2), x0, weighting="snr")


def test_wrong_shapes_are_refused():
    x0 = torch.zeros(2, 1, 2, 2)
    with pytest.raises(ValueError, match=r"t must have shape \(2,\), one time for every sample, got \(3,\)"):
        denoising_loss(lambda x, t: x, VPSDE(), x0, torch.ones(3), x0)
    with pytest.raises(ValueError, match=r"noise must have the shape of x0, \(2, 1, 2, 2\), got \(1, 1, 2, 2\)"):
        denoising_loss(lambda x, t: x, VPSDE(), x0, torch.ones(2), x0[:1])


@pytest.mark.parametrize("stratified", [False, True])
def test_times_are_uniform(stratified):
    generator = torch.Generator().manual_seed(0)
    t = torch.cat([draw_times(8, VPSDE(), stratified=stratified, generator=generator) for _ in range(2000)])
    assert t.min() >= 1e-5
    assert t.max() <= 1
    # Kolmogorov-Smirnov at the 1e-6 level for 16,000 independent draws; the stratified ones are closer still
    distance = (t.sort().values - torch.linspace(0, 1, len(t))).abs().max()
    assert distance < 2.7 / len(t) ** 0.5


def test_stratified_times_fill_every_interval():
    t = draw_times(16, VPSDE(), eps=1e-5, stratified=True, generator=torch.Generator().manual_seed(1))
    assert sorted(int(u * 16) for u in ((t - 1e-5) / (1 - 1e-5)).tolist()) == list(range(16))


def test_bad_eps_is_refused():
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1.0\), got 0"):
        draw_times(4, VPSDE(), eps=0)

import pytest
import torch

from fastscore.testing.statistics import (
    AnalyticModel,
    CountingModel,
    Mixture,
    assert_covariance,
    assert_mean,
    assert_mode_weights,
    assert_same_law,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
    z_threshold,
)


def _log_density(data, x, alpha, sigma):
    """log p(x) of alpha x_0 + sigma eps by torch.distributions, which shares no code with the helper."""
    dim = data.mean.numel()
    eye = torch.eye(dim, dtype=torch.float64)
    if isinstance(data, Mixture):
        components = torch.distributions.MultivariateNormal(
            alpha * data.means.flatten(1), (alpha**2 * data.std**2 + sigma**2) * eye
        )
        law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(data.weights), components)
    else:
        law = torch.distributions.MultivariateNormal(
            alpha * data.mean.flatten(), alpha**2 * data.covariance + sigma**2 * eye
        )
    return law.log_prob(x.flatten(1))


@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.01), (1.0, 5.0), (0.7, 0.71), (0.01, 1.0)])
def test_scores_are_gradients_of_the_log_density(data, alpha, sigma):
    x = torch.randn(16, *data.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5
    x.requires_grad_(True)
    (expected,) = torch.autograd.grad(_log_density(data, x, alpha, sigma).sum(), x)
    label = torch.full((16,), 1.0, dtype=torch.float64)
    got = data.score(x.detach(), alpha * label, sigma * label)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_exact_samples_have_the_law(data):
    assert_same_law(data.sample(40_000, seed=3), data, "exact samples")


def test_wrong_laws_are_noticed():
    data = mixture_2d()
    good = data.sample(40_000, seed=3)
    with pytest.raises(AssertionError, match=r"mean: largest \|z\|"):
        assert_mean(good + 0.02, data)
    with pytest.raises(AssertionError, match=r"covariance: largest \|z\|"):
        assert_covariance((good - data.mean) * 1.03 + data.mean, data)
    tilted = Mixture(data.means, torch.tensor([0.48, 0.32, 0.2], dtype=torch.float64), data.std)
    with pytest.raises(AssertionError, match=r"mode weights: largest \|z\|"):
        assert_mode_weights(tilted.sample(40_000, seed=3), data)
    with pytest.raises(AssertionError, match="non-finite"):
        assert_mean(good * float("nan"), data)


def test_a_false_alarm_is_as_rare_as_stated():
    assert z_threshold(1, 0.05) == pytest.approx(1.959964, abs=1e-6)
    data, alarms = gaussian_2d(), 0
    for seed in range(200):
        try:
            assert_mean(data.sample(500, seed), data, false_alarm=0.1)
        except AssertionError:
            alarms += 1
    assert 5 <= alarms <= 35  # 20 expected (the two coordinates correlate), 99.9 % of Binomial(200, 0.1)


@pytest.mark.parametrize("subvp", [False, True])
def test_vp_perturbation_matches_the_paper(subvp):
    t = torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = vp_perturbation(0.1, 20.0, subvp=subvp)(999 * t)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    torch.testing.assert_close(alpha, torch.exp(-integral / 2))
    variance = 1 - torch.exp(-integral)
    torch.testing.assert_close(sigma, variance if subvp else variance.sqrt(), rtol=1e-12, atol=0)


def test_analytic_model_converts_and_counts():
    data = mixture_2d()
    x = data.sample(5).float()
    sigma = torch.full((5,), 0.5)
    score = AnalyticModel(data, ve_perturbation, "score")(x, sigma)
    noise = AnalyticModel(data, ve_perturbation, "noise")(x, sigma)
    denoised = AnalyticModel(data, ve_perturbation, "denoised")(x, sigma)
    assert score.dtype == torch.float32
    torch.testing.assert_close(noise, -0.5 * score)
    torch.testing.assert_close(denoised, x + 0.25 * score)
    v = AnalyticModel(data, vp_perturbation(), "v")(x, 400 * sigma)
    alpha, std = vp_perturbation()(torch.tensor(200.0, dtype=torch.float64))
    noise, denoised = (AnalyticModel(data, vp_perturbation(), name)(x, 400 * sigma) for name in ("noise", "denoised"))
    torch.testing.assert_close(v, (alpha * noise - std * denoised).float())
    counting = CountingModel(AnalyticModel(data, ve_perturbation, "score", record=True))
    counting(x, sigma)
    counting(x[:2], sigma[:2])
    assert (counting.calls, counting.samples, counting.model.calls) == (2, 7, 2)
    assert [len(label) for label in counting.model.labels] == [5, 2]
    with pytest.raises(ValueError, match="prediction must be"):
        AnalyticModel(data, ve_perturbation, "x0")


def test_recording_model_keeps_labels_and_the_inputs_asked_for():
    model = AnalyticModel(mixture_2d(), ve_perturbation, "score", record=True)
    model.keep = {1}
    xs = [torch.full((2, 2, 1, 1), float(i)) for i in range(3)]
    for i, x in enumerate(xs):
        model(x, torch.full((2,), 1.0 + i))
    assert model.calls == 3
    assert [float(label[0]) for label in model.labels] == [1, 2, 3]
    assert set(model.inputs) == {1}
    assert torch.equal(model.inputs[1], xs[1])
    model.record = False
    model(xs[0], torch.ones(2))
    assert (model.calls, len(model.labels)) == (4, 3)


@pytest.mark.parametrize("data", [gaussian_2d(), mixture_2d()], ids=["gaussian", "mixture"])
def test_denoised_is_tweedie_and_the_mean_where_nothing_is_left(data):
    x = data.sample(5)
    alpha, sigma = torch.full((5,), 0.6, dtype=torch.float64), torch.full((5,), 0.8, dtype=torch.float64)
    tweedie = (x + 0.64 * data.score(x, alpha, sigma)) / 0.6
    torch.testing.assert_close(data.denoised(x, alpha, sigma), tweedie, rtol=1e-12, atol=1e-12)
    nothing = data.denoised(x, torch.zeros(5), torch.ones(5))
    torch.testing.assert_close(nothing, data.mean.expand(5, 2, 1, 1), rtol=1e-12, atol=1e-12)

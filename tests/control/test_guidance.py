"""Guidance against closed forms: a mixture's component as the class, sums of scores, the formulas of the papers."""

import warnings

import pytest
import torch
from torch import nn

import fastscore
from fastscore import VESDE, VPSDE, Convention
from fastscore.control import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Colorization,
    DPSGuidance,
    Expert,
    Inpainting,
    LinearGuidance,
    LinearReplacement,
    LogLikelihoodGuidance,
    grayscale,
)
from fastscore.samplers import Hook, describe, names
from fastscore.testing.statistics import (
    AnalyticModel,
    Gaussian,
    assert_same_law,
    gaussian_2d,
    mixture_2d,
    ve_perturbation,
    vp_perturbation,
)
from fastscore.testing.traffic import no_host_sync

DATA = mixture_2d()
COMPONENTS = [Gaussian(mean, torch.eye(2, dtype=torch.float64) * DATA.std**2) for mean in DATA.means]
TIME = vp_perturbation(label_scale=1.0)
NOISE = Convention("noise", "time")
VP = VPSDE()
LABELS = torch.tensor([2, 0, 1, 1])
ELSEWHERE = ("consistency", "langevin", "annealed-langevin", "langevin-corrector")  # do not reach the data in 40 steps
STATE = torch.randn(4, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def mixture_model():
    return AnalyticModel(DATA, TIME, "noise")


def classifier(x, times):
    """Exact: the responsibilities of the components."""
    return DATA.responsibilities(x, *TIME(times.double())).log().to(x.dtype)


class ClassConditional(nn.Module):
    """The exact noise of component `label`; of the whole mixture for label 3."""

    convention = NOISE

    def forward(self, x, times, labels):
        alpha, sigma = TIME(times.double())
        outputs = [-sigma[:, None, None, None] * law.score(x, alpha, sigma) for law in (*COMPONENTS, DATA)]
        return torch.stack(outputs)[labels, torch.arange(len(x))].to(x.dtype)


class Capture(Hook):
    """The clean images as the hooks before have left them, and where."""

    def __init__(self):
        self.seen = []

    def on_denoised(self, denoised, x, moment):
        self.seen.append((denoised.clone(), x.clone(), *moment.sde.marginal(moment.t), moment))


def seen(sde, model, *hooks):
    capture = Capture()
    sampler = fastscore.sampler("ddim", sde, model, steps=5, convention=getattr(model, "convention", NOISE))
    sampler.sample(STATE, hooks=[*hooks, capture])
    return capture.seen


def test_guided_by_the_exact_classifier_is_the_conditional_score():
    hook = ClassifierGuidance(classifier, LABELS, 3)
    for denoised, x, alpha, sigma, _ in seen(VP, mixture_model(), hook):
        exact = torch.stack(
            [COMPONENTS[y].denoised(x[i : i + 1], alpha[i], sigma[i])[0] for i, y in enumerate(LABELS.tolist())]
        )
        torch.testing.assert_close(denoised, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("way", ["classifier", "classifier-free"])
def test_samples_have_the_law_of_their_class(way):
    hooks, model = [ClassifierGuidance(classifier, torch.tensor([1]), 3)], mixture_model()
    if way == "classifier-free":
        hooks, model = [], ClassifierFreeGuidance(ClassConditional(), torch.tensor([1]), 3, scale=1.0)
    x = fastscore.sampler("dpmpp-2m", VP, model, steps=40, convention=NOISE).sample((2000, 2, 1, 1), hooks=hooks)
    assert_same_law(x, COMPONENTS[1], way)


@pytest.mark.parametrize("way", ["classifier", "classifier-free", "experts"])
@pytest.mark.parametrize("name", [name for name in names() if name not in ELSEWHERE])
def test_every_sample_is_of_its_class_in_every_sampler(name, way):
    """Also where samples leave the batch one after the other."""
    labels = torch.arange(24) % 3
    hooks, model = [ClassifierGuidance(classifier, labels, 3)], mixture_model()
    if way == "classifier-free":
        hooks, model = [], ClassifierFreeGuidance(ClassConditional(), labels, 3, scale=1.0)
    elif way == "experts":
        hooks = [Expert(model, -1.0, NOISE), Expert(ClassifierFreeGuidance(ClassConditional(), labels, 3, scale=1.0))]
    options = {"rtol": 1e-2, "atol": 1e-2} if describe(name).calls == "adaptive" else {"steps": 40}
    sampler = fastscore.sampler(name, VP, model, convention=NOISE, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sampler.sample((24, 2, 1, 1), dtype=torch.float64, hooks=hooks)
    assert torch.equal(DATA.responsibilities(x).argmax(1), labels)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.5])
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_classifier_free_guidance_is_the_published_formula(scale, rescale):

    def network(x, times, labels):
        return x * (1 + labels.to(x.dtype).reshape(-1, 1, 1, 1)) + x.square()

    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    guided = ClassifierFreeGuidance(network, LABELS, 3, scale=scale, rescale=rescale)(x, torch.ones(4))
    rows = []
    for row, y in zip(x, LABELS.tolist(), strict=True):
        conditional, unconditional = row * (1 + y) + row.square(), row * 4 + row.square()
        plain = unconditional + scale * (conditional - unconditional)
        rows.append(rescale * plain * conditional.std() / plain.std() + (1 - rescale) * plain)
    torch.testing.assert_close(guided, torch.stack(rows), rtol=1e-12, atol=1e-12)


def test_classifier_free_guidance_calls_the_network_once_and_leaves_its_mode():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.modes = [], []

        def forward(self, x, times, labels):
            self.rows.append((len(x), len(times), labels.tolist()))
            self.modes.append(self.training)
            return x.tanh()

    for training in (True, False):
        network = Network().train(training)
        model = ClassifierFreeGuidance(network, LABELS, 3, scale=2.0, null=7)
        fastscore.sampler("ddim", VP, model, steps=3, convention=NOISE).sample(STATE)
        assert network.rows == [(8, 8, [2, 0, 1, 1, 7, 7, 7, 7])] * 3
        assert network.modes == [False] * 3
        assert network.training == training


@pytest.mark.parametrize(("scale", "told"), [(1.0, [2, 0, 1, 1]), (0.0, [3, 3, 3, 3])])
def test_classifier_free_guidance_without_an_opposite_calls_the_network_with_one_row_a_sample(scale, told):
    calls = []

    def network(x, times, labels):
        calls.append(labels.tolist())
        return x

    ClassifierFreeGuidance(network, LABELS, 3, scale=scale)(STATE, torch.ones(4))
    assert calls == [told]


def test_an_energy_is_minus_a_log_likelihood():
    """A Gaussian times exp(-k |x - c|^2 / 2) at time t: the score is that of both."""
    centers = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(4, 1, 1, 1)
    data = gaussian_2d()

    def log_likelihood(x, moment):
        return -1.5 * (x - moment.of_rows(centers, "centers")).square().flatten(1).sum(1)

    hook = LogLikelihoodGuidance(log_likelihood, scale=0.5)
    for denoised, x, alpha, sigma, _ in seen(VP, AnalyticModel(data, TIME, "noise"), hook):
        score = data.score(x, alpha, sigma) - 1.5 * (x - centers)
        wide = sigma.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(
            denoised, (x + wide.square() * score) / alpha.reshape(wide.shape), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp-2m", {"steps": 60}),
        ("ddim", {"steps": 200}),
        ("edm", {"steps": 60}),
        ("pc", {"steps": 200}),
        ("rk45", {"rtol": 1e-4, "atol": 1e-4}),
    ],
)
def test_mean_given_a_linear_observation_of_a_mixture(name, options):
    """y = <a, x_0> + noise, whose likelihood at x_t is a mixture over the components: the posterior is known."""
    a, y, noise_std = torch.tensor([0.8, -0.6], dtype=torch.float64), -0.1, 0.3
    means, variance = DATA.means.flatten(1), DATA.std**2

    def log_normal(gap, spread):
        return -0.5 * (gap.square() / spread + spread.log())

    def log_likelihood(x, moment):
        alpha, sigma = (value[:, None] for value in moment.sde.marginal(moment.t))
        gain = alpha * variance / (alpha.square() * variance + sigma.square())
        clean = means + gain[..., None] * (x.flatten(1)[:, None] - alpha[..., None] * means)  # given the component
        spread = gain / alpha * sigma.square() + noise_std**2  # <a, a> = 1
        weights = DATA.responsibilities(x, alpha[:, 0], sigma[:, 0]).clamp_min(1e-300).log()
        return torch.logsumexp(weights + log_normal(y - clean @ a, spread), 1)

    spread = torch.tensor(variance + noise_std**2, dtype=torch.float64)
    weights = torch.softmax(DATA.weights.log() + log_normal(y - means @ a, spread), 0)
    centers = means + variance / spread * (y - means @ a)[:, None] * a
    mean = weights @ centers
    within = variance * (torch.eye(2, dtype=torch.float64) - variance / spread * torch.outer(a, a))
    covariance = within + (centers - mean).T @ ((centers - mean) * weights[:, None])
    sampler = fastscore.sampler(name, VP, mixture_model(), convention=NOISE, eps=1e-4, **options)
    x = sampler.sample((4000, 2, 1, 1), dtype=torch.float64, hooks=[LogLikelihoodGuidance(log_likelihood)])
    assert_same_law(x, Gaussian(mean.reshape(2, 1, 1), covariance), "posterior")
    assert float((mean - DATA.mean.flatten()).norm()) > 0.3  # far from the mean without the observation


@pytest.mark.parametrize("prediction", ["score", "noise", "denoised", "v"])
@pytest.mark.parametrize("sde", [VP, VESDE()], ids=["vp", "ve"])
def test_experts_multiply(prediction, sde):
    """The score is the sum, whatever the networks predict and however they are told the time."""
    ve = isinstance(sde, VESDE)
    perturb = ve_perturbation if ve else vp_perturbation()
    label = "sigma" if ve else "scaled_time"
    model = AnalyticModel(DATA, perturb, "noise")
    model.convention = Convention("noise", label)
    expert = AnalyticModel(gaussian_2d(), perturb, prediction)
    hooks = [Expert(expert, 0.7, Convention(prediction, label)), Expert(model, -0.2)]
    for denoised, x, alpha, sigma, _ in seen(sde, model, *hooks):
        score = 0.8 * DATA.score(x, alpha, sigma) + 0.7 * gaussian_2d().score(x, alpha, sigma)
        wide = sigma.reshape(-1, 1, 1, 1)
        exact = (x + wide.square() * score) / alpha.reshape(wide.shape)
        torch.testing.assert_close(denoised, exact, rtol=1e-9, atol=1e-9 * float(sigma.max()) + 1e-9)


def test_an_expert_of_edm_form():
    """A raw network F, with c_in in front: its clean image is D, its score (alpha D - x) / sigma^2."""

    def network(x, label):
        return torch.sin(x) + label.reshape(-1, 1, 1, 1)

    denoised, x, alpha, sigma, _ = seen(VP, mixture_model(), Expert(network, 1.0, Convention("edm", "log_sigma")))[0]
    alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
    level, data = sigma / alpha, 0.5  # Karras et al. 2022, table 1, at x / alpha
    total = level.square() + data**2
    clean = data**2 / total * x / alpha + level * data / total.sqrt() * network(
        x / alpha / total.sqrt(), level.log() / 4
    )
    plain = DATA.denoised(x, alpha.flatten(), sigma.flatten())
    torch.testing.assert_close(denoised, plain + clean - x / alpha, rtol=1e-9, atol=1e-7)


def test_guidance_works_in_inference_mode_and_keeps_the_dtype():
    sampler = fastscore.sampler("ddim", VP, mixture_model(), steps=3, convention=NOISE)
    hook = ClassifierGuidance(classifier, LABELS, 3)
    expected = sampler.sample(STATE.float(), hooks=[hook])
    with torch.inference_mode():
        torch.testing.assert_close(sampler.sample(STATE.float(), hooks=[hook]), expected)
    assert expected.dtype == torch.float32
    assert not expected.requires_grad


def test_no_value_is_read_between_steps():
    images, gray = torch.zeros(4, 2, 1, 1), grayscale((2, 1, 1))
    hooks = [
        Inpainting(images, torch.tensor([True, False]).reshape(2, 1, 1)),
        Colorization(images[:, :1]),
        ClassifierGuidance(lambda x, times: x.flatten(1)[:, [0, 1, 0]], LABELS, 3),
        Expert(mixture_model(), 1.0, NOISE),
        LinearReplacement(gray, images[:, :1]),
        LinearGuidance(mixture_model(), gray, images[:, :1], convention=NOISE, noise_std=0.1, data_std=1.0),
        DPSGuidance(mixture_model(), gray, images[:, :1], convention=NOISE, zeta=0.1),
    ]
    sampler = fastscore.sampler("dpmpp-2m", VP, guided(), steps=6)
    region, left, model = no_host_sync(), 6, sampler.model

    def watched(x, times):
        nonlocal left
        if left == 6:
            region.__enter__()
        left -= 1
        h = model(x, times)
        if left == 0:
            region.__exit__(None, None, None)
        return h

    sampler.model = watched
    sampler.sample((4, 2, 1, 1), hooks=hooks)
    assert left == 0


def guided(**changed):
    return ClassifierFreeGuidance(
        **{"network": ClassConditional(), "labels": LABELS, "classes": 3, "scale": 2.0} | changed
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: guided(labels=LABELS + 1), ValueError, r"labels must lie in \[0, 3\), got \[3, 1, 2, 2\]"),
        (lambda: guided(labels=-LABELS), ValueError, r"labels must lie in \[0, 3\), got \[-2, 0, -1, -1\]"),
        (lambda: guided(labels=LABELS.float()), TypeError, "labels must be int64, got torch.float32"),
        (lambda: guided(labels=[1]), TypeError, "labels must be an int64 tensor of shape .*, got list"),
        (lambda: guided(labels=LABELS[None]), ValueError, r"labels must have shape \(B,\), .*, got \(1, 4\)"),
        (lambda: guided(classes=0), ValueError, "classes must be at least 1, got 0"),
        (lambda: guided(null=-1), ValueError, "null must be at least 0, got -1"),
        (lambda: guided(scale=float("nan")), ValueError, "scale must be a finite number, got nan"),
        (lambda: guided(rescale=1.5), ValueError, "rescale must be a finite number at least 0 and at most 1, got 1.5"),
        (
            lambda: guided(network=None),
            TypeError,
            "network must be callable as network.x, times, labels., got NoneType",
        ),
        (lambda: guided()(STATE[:3], torch.ones(3)), ValueError, "labels must hold 1 label, or .*, 3, got 4"),
        (
            lambda: guided(network=lambda x, t, y: x[:1])(STATE, torch.ones(4)),
            ValueError,
            "network must return a tensor",
        ),
        (lambda: ClassifierGuidance(classifier, LABELS, 2), ValueError, r"labels must lie in \[0, 2\), got \[2, 0"),
        (lambda: ClassifierGuidance(None, LABELS, 3), TypeError, "classifier must be callable as classifier.x, times."),
        (lambda: ClassifierGuidance(classifier, LABELS, 3, "x"), TypeError, "scale must be a number, got 'x'"),
        (lambda: Expert(None), TypeError, "Expert: network must be callable"),
        (lambda: Expert(mixture_model(), 1.0, "noise"), TypeError, "convention must be a fastscore.Convention or None"),
        (lambda: LogLikelihoodGuidance(3), TypeError, "log_likelihood must be callable as"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("hook", "error", "message"),
    [
        (ClassifierGuidance(classifier, LABELS[:3], 3), ValueError, "labels must have 1 row, or .*, 4, got 3"),
        (ClassifierGuidance(classifier, LABELS, 5), ValueError, r"return logits of shape \(4, 5\), got \(4, 3\)"),
        (LogLikelihoodGuidance(lambda x, moment: x.sum()), ValueError, r"shape \(4,\), one value per sample, got \(\)"),
        (LogLikelihoodGuidance(lambda x, moment: 0.0), TypeError, r"return a tensor of shape \(4,\), got float"),
        (LogLikelihoodGuidance(lambda x, moment: torch.ones(4)), ValueError, "must depend on x by differentiable"),
        (Expert(lambda x, label: x[:1], 1.0, NOISE), ValueError, "network must return a tensor like its input"),
    ],
)
def test_what_does_not_fit_is_refused_when_sampling(hook, error, message):
    with pytest.raises(error, match=message):
        seen(VP, mixture_model(), hook)

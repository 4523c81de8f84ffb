"""Data whose perturbed score is known in closed form, networks made of it, and tests of samples against its law.

Notation as everywhere: x_t = alpha x_0 + sigma eps. Everything here is float64 inside and does not use the code it
is meant to test (`fastscore.sde`, `fastscore.score`).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Perturbation = Callable[[Tensor], tuple[Tensor, Tensor]]
"""label [B] (float64) -> (alpha, sigma), each [B] float64."""


class Data(Protocol):
    """A law of x_0 with a known score after perturbation."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def mean(self) -> Tensor:
        """The mean, of the shape of one sample, float64."""

    @property
    def covariance(self) -> Tensor:
        """The covariance of the flattened sample, [D, D] float64."""

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The score of the law of alpha x_0 + sigma eps at x [B, ...], with alpha and sigma [B], in float64."""

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | alpha x_0 + sigma eps = x], likewise; alpha may be 0."""

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Draw n exact samples, float64."""


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """[B] (or a scalar) shaped so that it multiplies [B, ...]."""
    value = value.to(torch.float64)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance); `mean` has the shape of one sample, `covariance` is [D, D] of the flattened sample."""

    mean: Tensor
    covariance: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """-(alpha^2 C + sigma^2 I)^-1 (x - alpha mean), solved in the eigenbasis of C."""
        values, basis = torch.linalg.eigh(self.covariance.double())
        alpha, sigma = alpha.double(), sigma.double()
        centered = (x.double() - _rows(alpha, x) * self.mean.double()).reshape(x.shape[0], -1)
        variance = alpha.square()[..., None] * values + sigma.square()[..., None]
        whitened = (centered @ basis) / variance
        return torch.neg(whitened @ basis.T).reshape(x.shape)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """mean - alpha C score."""
        shift = self.score(x, alpha, sigma).reshape(x.shape[0], -1) @ self.covariance.double()
        return torch.sub(self.mean.double(), _rows(alpha, x) * shift.reshape(x.shape))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.mean.numel(), dtype=torch.float64, generator=generator)
        colored = z @ torch.linalg.cholesky(self.covariance.double()).T
        return torch.add(self.mean, colored.reshape(n, *self.shape))


@dataclass(frozen=True)
class Mixture:
    """sum_k weights_k N(means_k, std^2 I); `means` is [K, ...], `weights` [K] sums to 1."""

    means: Tensor
    weights: Tensor
    std: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    @property
    def mean(self) -> Tensor:
        mean: Tensor = torch.tensordot(self.weights.double(), self.means.double(), 1)
        return mean

    @property
    def covariance(self) -> Tensor:
        centered = (self.means.double() - self.mean).flatten(1)
        between = (centered.T * self.weights.double()) @ centered
        return torch.add(between, torch.eye(centered.shape[1], dtype=torch.float64), alpha=self.std**2)

    def responsibilities(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """P(component k | x) after perturbation, [B, K]; its expectation under the law of x is `weights`."""
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (alpha, sigma))
        variance = alpha**2 * self.std**2 + sigma**2
        means = alpha[..., None, None] * self.means.double().flatten(1)
        squares = (x.double().flatten(1)[:, None] - means).square().sum(-1)
        return torch.softmax(self.weights.double().log() - squares / (2 * variance[..., None]), -1)

    def component_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """sum_k r_k mean_k with r the responsibilities."""
        return torch.tensordot(self.responsibilities(x, alpha, sigma), self.means.double(), 1)

    def variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Of every component after perturbation: alpha^2 std^2 + sigma^2."""
        return torch.add(alpha.double().square() * self.std**2, sigma.double().square())

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """-(x - alpha sum_k r_k mean_k) / (alpha^2 std^2 + sigma^2) with r the responsibilities."""
        centered = x.double() - _rows(alpha, x) * self.component_mean(x, alpha, sigma)
        return torch.div(-centered, _rows(self.variance(alpha, sigma), x))

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(std^2 alpha x + sigma^2 sum_k r_k mean_k) / (alpha^2 std^2 + sigma^2)."""
        pull = _rows(sigma, x).square() * self.component_mean(x, alpha, sigma)
        return torch.div(self.std**2 * _rows(alpha, x) * x.double() + pull, _rows(self.variance(alpha, sigma), x))

    def sample(self, n: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        z = torch.randn(n, *self.shape, dtype=torch.float64, generator=generator)
        return torch.add(self.means.double()[which], z, alpha=self.std)


def gaussian_2d() -> Gaussian:
    """A correlated Gaussian in R^{2x1x1}, off center, of unequal variances."""
    mean = torch.tensor([0.4, -0.7], dtype=torch.float64).reshape(2, 1, 1)
    return Gaussian(mean, torch.tensor([[0.30, 0.12], [0.12, 0.15]], dtype=torch.float64))


def mixture_2d() -> Mixture:
    """Three well-separated components of unequal weight in R^{2x1x1}."""
    means = torch.tensor([[-0.8, -0.5], [0.9, -0.3], [0.0, 0.8]], dtype=torch.float64).reshape(3, 2, 1, 1)
    return Mixture(means, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.15)


def ve_perturbation(label: Tensor) -> tuple[Tensor, Tensor]:
    """Variance exploding with label sigma: alpha = 1."""
    return torch.ones_like(label), label


def vp_perturbation(
    beta_min: float = 0.1, beta_max: float = 20.0, *, label_scale: float = 999.0, subvp: bool = False
) -> Perturbation:
    """Variance preserving with label `label_scale` * t (Song et al. 2021, eq. 33; sub-VP eq. 29), cancellation-free."""

    def perturb(label: Tensor) -> tuple[Tensor, Tensor]:
        t = label / label_scale
        log_alpha = -(t**2) * (beta_max - beta_min) / 4 - t * beta_min / 2
        variance = -torch.expm1(2 * log_alpha)
        return log_alpha.exp(), variance if subvp else variance.sqrt()

    return perturb


class RecordingModel(nn.Module):
    """A network given by `evaluate` in float64: forward(x, label) returns the dtype of x, and counts and records.

    Attributes:
        calls: how often forward ran.
        record: whether to keep what forward is given.
        labels: the label of every recorded call.
        keep: the numbers, from 0, of the calls whose x is to be recorded too.
        inputs: call number -> x.
    """

    def __init__(self, record: bool = False, keep: Collection[int] = ()) -> None:
        super().__init__()
        self.calls, self.record, self.keep = 0, record, keep
        self.labels: list[Tensor] = []
        self.inputs: dict[int, Tensor] = {}

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        """The output for x [B, ...] and label [B], all float64."""
        raise NotImplementedError

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if self.record:
            self.labels.append(label.detach().clone())
            if self.calls in self.keep:
                self.inputs[self.calls] = x.detach().clone()
        self.calls += 1
        return self.evaluate(x.double(), label.double()).to(x.dtype)


class AnalyticModel(RecordingModel):
    """A network with the exact answer.

    Args:
        data: the law of x_0.
        perturb: label -> (alpha, sigma).
        prediction: "score", "noise" (-sigma score), "denoised" (E[x_0 | x]) or "v" (alpha noise - sigma denoised).
    """

    def __init__(self, data: Data, perturb: Perturbation, prediction: str, record: bool = False) -> None:
        super().__init__(record)
        if prediction not in ("score", "noise", "denoised", "v"):
            raise ValueError(f"prediction must be 'score', 'noise', 'denoised' or 'v', got {prediction!r}")
        self.data, self.perturb, self.prediction = data, perturb, prediction

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = self.perturb(label)
        if self.prediction == "denoised":
            return self.data.denoised(x, alpha, sigma)
        score = self.data.score(x, alpha, sigma)
        if self.prediction == "score":
            return score
        noise = -_rows(sigma, x) * score
        if self.prediction == "noise":
            return noise
        return _rows(alpha, x) * noise - _rows(sigma, x) * self.data.denoised(x, alpha, sigma)


class CountingModel(nn.Module):
    """Wraps a network and counts its evaluations (`calls`) and the samples that went through it (`samples`)."""

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.calls, self.samples = model, 0, 0

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        self.samples += x.shape[0]
        return self.model(x, label)


def z_threshold(comparisons: int, false_alarm: float = 1e-4) -> float:
    """The |z| that `comparisons` standard normals all stay under except with probability `false_alarm` (Bonferroni)."""
    return math.sqrt(2.0) * float(torch.erfinv(torch.tensor(1 - false_alarm / comparisons, dtype=torch.float64)))


def assert_mean(samples: Tensor, data: Data, name: str = "mean", false_alarm: float = 1e-4) -> float:
    """Assert that the mean of `samples` [n, ...] is that of `data` within statistical error; the largest |z|."""
    return _assert_expectation(samples.double().flatten(1) - data.mean.double().flatten(), name, false_alarm)


def assert_covariance(samples: Tensor, data: Data, name: str = "covariance", false_alarm: float = 1e-4) -> float:
    """The same for every entry of the covariance, about the true mean; no normality is assumed."""
    centered = samples.double().flatten(1) - data.mean.double().flatten()
    rows, columns = torch.triu_indices(centered.shape[1], centered.shape[1])
    products = centered[:, rows] * centered[:, columns] - data.covariance[rows, columns]
    return _assert_expectation(products, name, false_alarm)


def assert_mode_weights(samples: Tensor, data: Mixture, name: str = "mode weights", false_alarm: float = 1e-4) -> float:
    """The same for the weights of a mixture: the responsibilities of exact samples have the weights as expectation."""
    return _assert_expectation(data.responsibilities(samples) - data.weights.double(), name, false_alarm)


def assert_same_law(samples: Tensor, data: Data, name: str, false_alarm: float = 1e-4) -> dict[str, float]:
    """Mean, covariance and, for a mixture, mode weights; returns the largest |z| of each."""
    scores = {
        "mean": assert_mean(samples, data, f"{name}: mean", false_alarm),
        "covariance": assert_covariance(samples, data, f"{name}: covariance", false_alarm),
    }
    if isinstance(data, Mixture):
        scores["mode weights"] = assert_mode_weights(samples, data, f"{name}: mode weights", false_alarm)
    return scores


def _assert_expectation(deviations: Tensor, name: str, false_alarm: float) -> float:
    """Every column of `deviations` [n, m] should have expectation 0."""
    n, m = deviations.shape
    if not torch.isfinite(deviations).all():
        raise AssertionError(f"{name}: non-finite samples")
    z = deviations.mean(0) / (deviations.std(0) / math.sqrt(n))
    worst = int(z.abs().argmax())
    limit = z_threshold(m, false_alarm)
    line = (
        f"{name}: largest |z| {abs(float(z[worst])):.2f} of {m} at {worst} "
        f"(deviation {float(deviations[:, worst].mean()):+.2e}, n = {n}), limit {limit:.2f}"
    )
    print(line)
    if not abs(float(z[worst])) <= limit:
        raise AssertionError(line)
    return abs(float(z[worst]))

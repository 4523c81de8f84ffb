"""Data whose perturbed score is known in closed form, networks made of it, and tests of samples against its law.

Notation as everywhere: x_t = alpha x_0 + sigma eps. Everything here is float64 inside and does not use the code it
is meant to test (`fastscore.sde`, `fastscore.score`).
"""

import math
from collections.abc import Callable
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

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """-(x - alpha sum_k r_k mean_k) / (alpha^2 std^2 + sigma^2) with r the responsibilities."""
        posterior = torch.tensordot(self.responsibilities(x, alpha, sigma), self.means.double(), 1)
        variance = alpha.double().square() * self.std**2 + sigma.double().square()
        return torch.div(_rows(alpha, x) * posterior - x.double(), _rows(variance, x))

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


class AnalyticModel(nn.Module):
    """A network with the exact answer: forward(x, label) evaluates in float64, returns the dtype of x.

    Args:
        data: the law of x_0.
        perturb: label -> (alpha, sigma).
        prediction: "score", "noise" (-sigma score) or "denoised" ((x + sigma^2 score) / alpha).

    Attributes:
        calls: how often forward ran.
        labels: the label of every call, when `record` is set.
    """

    def __init__(self, data: Data, perturb: Perturbation, prediction: str, record: bool = False) -> None:
        super().__init__()
        if prediction not in ("score", "noise", "denoised"):
            raise ValueError(f"prediction must be 'score', 'noise' or 'denoised', got {prediction!r}")
        self.data, self.perturb, self.prediction = data, perturb, prediction
        self.calls, self.record = 0, record
        self.labels: list[Tensor] = []

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        if self.record:
            self.labels.append(label.detach().clone())
        alpha, sigma = self.perturb(label.double())
        out = self.data.score(x, alpha, sigma)
        if self.prediction == "noise":
            out = -_rows(sigma, x) * out
        elif self.prediction == "denoised":
            out = (x.double() + _rows(sigma, x) ** 2 * out) / _rows(alpha, x)
        return out.to(x.dtype)


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

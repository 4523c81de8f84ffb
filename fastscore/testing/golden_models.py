"""Networks in closed form of the kinds that published samplers were run with; `golden.golden_model` fills them in."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.testing.statistics import Mixture, Perturbation, RecordingModel


def table_perturbation(alphas: Tensor, sigmas: Tensor) -> Perturbation:
    """Label: an index into tables of alpha and sigma, [N] float64; truncated."""

    def perturb(label: Tensor) -> tuple[Tensor, Tensor]:
        index = label.long()
        return alphas.to(label.device)[index], sigmas.to(label.device)[index]

    return perturb


def geometric_perturbation(sigma_min: float, sigma_max: float) -> Perturbation:
    """Label t of a VE SDE: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, eq. 30)."""
    return lambda label: (torch.ones_like(label), sigma_min * (sigma_max / sigma_min) ** label)


def chain_perturbation(betas: Tensor, position: Callable[[Tensor], Tensor] = lambda label: label) -> Perturbation:
    """A chain of betas [N] (DDPM), between whose log alphas is interpolated.

    Args:
        betas: the last may be 1.
        position: label -> index into the betas, fractions allowed; clamped to [0, N - 1].
    """
    log_alphas = 0.5 * torch.log1p(-betas.double()).cumsum(0)

    def perturb(label: Tensor) -> tuple[Tensor, Tensor]:
        table = log_alphas.to(label.device)
        at = position(label).clamp(0, len(table) - 1)
        below, fraction = at.long(), at.frac()
        above = (below + 1).clamp(max=len(table) - 1)
        between = table[below] + fraction * (table[above] - table[below])
        log_alpha = torch.where(fraction > 0, between, table[below])  # an alpha of 0 has no difference to the next
        return log_alpha.exp(), torch.expm1(2 * log_alpha).neg().sqrt()

    return perturb


class WithVariance(RecordingModel):
    """`model` with as many channels again, as a network with learned variances has: 0.8 sin(3x), in [-1, 1]."""

    def __init__(self, model: RecordingModel) -> None:
        super().__init__()
        self.model = model

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        return torch.cat([self.model.evaluate(x, label), 0.8 * torch.sin(3 * x)], 1)


class ClassifierGradient:
    """(x, label [B], y [B]) -> grad_x log p(component y | x) = alpha (mean_y - sum_k r_k mean_k) / variance."""

    def __init__(self, mixture: Mixture, perturb: Perturbation) -> None:
        self.mixture, self.perturb = mixture, perturb

    def __call__(self, x: Tensor, label: Tensor, y: Tensor) -> Tensor:
        alpha, sigma = self.perturb(label.double())
        gap = self.mixture.means.double()[y] - self.mixture.component_mean(x, alpha, sigma)
        scale = alpha / self.mixture.variance(alpha, sigma)
        return (scale.reshape(-1, *[1] * (x.ndim - 1)) * gap).to(x.dtype)


class ConsistencyFunction(RecordingModel):
    """The end at t_min of the VE probability flow of N(mean, std^2 I) from x at label t (Song et al. 2023, eq. 2)."""

    def __init__(self, mean: Tensor, std: float, t_min: float) -> None:
        super().__init__()
        self.mean, self.std, self.t_min = mean, std, t_min

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        ratio = torch.sqrt((self.std**2 + self.t_min**2) / (self.std**2 + label**2))
        return self.mean + (x - self.mean) * ratio.reshape(-1, *[1] * (x.ndim - 1))


class KarrasNetwork(RecordingModel):
    """The raw network F of a denoiser D(x, sigma) = c_skip x + c_out F(c_in x, 250 log sigma).

    Scalings of Karras et al. 2022, table 1; with `sigma_min` those of Song et al. 2023, appendix C, for which
    D(x, sigma_min) = x.
    """

    def __init__(self, denoiser: RecordingModel, sigma_data: float, sigma_min: float = 0.0) -> None:
        super().__init__()
        self.denoiser, self.sigma_data, self.sigma_min = denoiser, sigma_data, sigma_min

    def evaluate(self, x: Tensor, label: Tensor) -> Tensor:
        sigma = torch.exp(label / 250)
        total = torch.sqrt(sigma**2 + self.sigma_data**2).reshape(-1, *[1] * (x.ndim - 1))
        state = x * total
        shifted = (sigma - self.sigma_min).reshape(total.shape)
        c_skip = self.sigma_data**2 / (shifted**2 + self.sigma_data**2)
        c_out = shifted * self.sigma_data / total
        return (self.denoiser.evaluate(state, sigma) - c_skip * state) / c_out

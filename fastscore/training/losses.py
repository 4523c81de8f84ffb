"""Denoising score matching in continuous time (Song et al. 2021, arXiv 2011.13456, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore.score import Convention, convention_of
from fastscore.sde import SDE

WEIGHTINGS = ("noise", "likelihood", "prediction")


def denoising_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    convention: Convention | None = None,
    weighting: str = "noise",
    reduce_mean: bool = True,
) -> Tensor:
    """The loss of every sample, float32 (B,) (float64 for float64 data): its mean over the batch is the objective.

    A weighted squared error of the noise estimate, w(t) |eps_hat - eps|^2, in the paper's terms
    w(t) sigma(t)^2 |score + eps / sigma(t)|^2.

    x0, noise: (B, ...) clean data and standard normal noise. t: (B,) times in (0, T].
    convention: what the network predicts; its own by default (`fastscore.score.convention_of`).
    weighting: "noise": w = 1; "likelihood": w = g(t)^2 / sigma(t)^2, so that the objective bounds the likelihood
        (Song et al. 2021, arXiv 2101.09258, theorem 1); "prediction": the squared error of what the network itself
        predicts (of v: Salimans and Ho 2022, arXiv 2202.00512, section 4; of EDM's F: Karras et al. 2022, eq. 8).
    reduce_mean: mean over the elements of a sample; False: half their sum.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    convention = convention_of(network, sde) if convention is None else convention

    x, labels = noised(sde, x0, t, noise, convention)

    def column(values: Tensor) -> Tensor:
        return _per_sample(values, x0)

    output = network(column(convention.input_scale(sde, t)) * x, labels).to(x0.dtype)
    p, q = convention.coefficients(sde, t, "noise")
    error = (column(p) * x + column(q) * output - noise).square().flatten(1)
    loss = error.mean(1) if reduce_mean else 0.5 * error.sum(1)
    if weighting == "likelihood":
        loss = loss * column(sde.diffusion(t).square() / sde.sigma(t).square()).flatten()
    elif weighting == "prediction":
        loss = loss / column(q.square()).flatten()
    return loss


def noised(sde: SDE, x0: Tensor, t: Tensor, noise: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """The state alpha x0 + sigma noise at the times t (B,), and what a network is told of them.

    Raises ValueError unless there is a time for every sample of x0 (B, ...), and the noise is of its shape.
    """
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t must have shape ({x0.shape[0]},), one time for every sample, got {tuple(t.shape)}")
    if noise.shape != x0.shape:
        raise ValueError(f"noise must have the shape of x0, {tuple(x0.shape)}, got {tuple(noise.shape)}")
    alpha, sigma = sde.marginal(t)
    labels = convention.labels(sde, t)
    labels = labels.to(x0.dtype) if labels.is_floating_point() else labels
    return _per_sample(alpha, x0) * x0 + _per_sample(sigma, x0) * noise, labels


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Values (B,) as factors of x (B, ...)."""
    return values.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def draw_times(
    batch: int, sde: SDE, *, eps: float = 1e-5, stratified: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Uniform times in [eps, T), float32 (batch,), on the CPU. At t = 0 the score of the data need not exist.

    stratified: one time in each of `batch` equal intervals, by one common shift (Kingma et al. 2021, arXiv 2107.00630,
        App. I.1): each is still uniform, and their mean loss varies less.
    """
    if not 0 < eps < sde.T:
        raise ValueError(f"eps must be in (0, {sde.T}), got {eps}")
    if stratified:
        u = (torch.rand(1, generator=generator) + torch.arange(batch) / batch) % 1
    else:
        u = torch.rand(batch, generator=generator)
    return u * (sde.T - eps) + eps

"""Images from linear measurements: super-resolution, compressed sensing, deblurring."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype, is_state, same_device, wrong_type, wrong_value
from fastscore.control.guidance import ScoreGuidance, check_network, predicted
from fastscore.control.operators import LinearOperator
from fastscore.control.replacement import per_row
from fastscore.samplers.base import check_count, check_number
from fastscore.samplers.hooks import Moment
from fastscore.score import Convention

__all__ = ["LinearGuidance"]


class LinearGuidance(ScoreGuidance):
    """Guidance by a linear measurement ``y = A x_0 + noise``, with the gradient taken through the network.

    Takes x_0 given x_t as normal about the clean image D(x_t) of the network with variance ``r^2``, so that y given x_t
    is normal about A D(x_t) with covariance ``r^2 A A^T + noise_std^2``; the gradient of its log-density is
    ``(dD/dx)^T A^T (r^2 A A^T + noise_std^2)^-1 (y - A D)``. Here ``r^2 = sigma^2 s^2 / (sigma^2 + alpha^2 s^2)`` with
    s the `data_std`, as it is for normal data of independent pixels, where the guided score is exact; for other data it
    is an approximation. Costs a forward and a backward of the network beside the sampler's own forward.

    Args:
        network: called as ``network(x, times)``, differentiable in x; as a rule the model of the sampler.
        operator: A and its adjoint.
        measurement: y, (B, *operator.measured) floating point, one per sample, or (1, ...) for all of them.
        noise_std: standard deviation of the noise of the measurement, >= 0.
        data_std: s, the standard deviation of the pixels of the data, > 0.
        scale: see `ScoreGuidance`.
        iterations: of conjugate gradients for the inverse, >= 1: exact with as many as A A^T has different eigenvalues,
            so with one for averaging or masks.
        convention: how to read the network; by default ``network.convention``, or what was published with the SDE.

    Raises:
        TypeError, ValueError: for a bad argument; when sampling, images or measurements do not fit, or the network is
            not differentiable.

    Source: Chung et al., arXiv 2209.14687 (DPS), section 3.1, for the gradient; Song et al., Pseudoinverse-guided
    diffusion models for inverse problems, ICLR 2023, section 3, for the covariance.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        operator: LinearOperator,
        measurement: Tensor,
        *,
        noise_std: float,
        data_std: float,
        scale: float = 1.0,
        iterations: int = 10,
        convention: Convention | None = None,
    ) -> None:
        super().__init__(scale)
        name = "LinearGuidance"
        check_network(name, "network", network, convention)
        if not isinstance(operator, LinearOperator):
            wrong_type(name, "operator", "be a LinearOperator", type(operator).__name__)
        is_state(name, "measurement", measurement)
        if measurement.shape[1:] != operator.measured:
            accepted = f"have shape (B, ...) with ... what the operator measures, {operator.measured}"
            wrong_value(name, "measurement", accepted, tuple(measurement.shape))
        check_number(name, "noise_std", noise_std, least=0.0)
        check_number(name, "data_std", data_std, above=0.0)
        check_count(name, "iterations", iterations, 1)
        self.network, self.operator, self.measurement, self.convention = network, operator, measurement, convention
        self.noise_std, self.data_std, self.iterations = float(noise_std), float(data_std), iterations

    def extra_score(self, x: Tensor, moment: Moment) -> Tensor:
        if x.shape[1:] != self.operator.shape:
            accepted = f"be for images of shape {tuple(x.shape[1:])}"
            wrong_value("LinearGuidance", "operator", accepted, self.operator.shape)
        same_device("LinearGuidance", "measurement", self.measurement, x, "the state")
        y = moment.of_rows(self.measurement, "LinearGuidance: measurement")
        alpha, sigma = (value.square() for value in moment.sde.marginal(moment.t))
        variance = sigma * self.data_std**2 / (sigma + alpha * self.data_std**2)
        with torch.inference_mode(False), torch.enable_grad():
            point = x.clone().requires_grad_()
            clean = predicted(self.network, self.convention, point, moment, "denoised")
            residual = (y - self.operator.forward(clean.detach())).to(accumulation_dtype(x.dtype))
            weights = _solve(self.operator, residual, per_row(self.noise_std**2 / variance, residual), self.iterations)
            pull = self.operator.adjoint(weights / per_row(variance, residual))
            return torch.autograd.grad(clean, point, pull.to(clean.dtype))[0]


@torch.no_grad()
def _solve(operator: LinearOperator, right: Tensor, shift: Tensor, iterations: int) -> Tensor:
    """``(A A^T + shift)^-1 right`` for every row, by conjugate gradients from 0 (Hestenes and Stiefel, 1952)."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return per_row((a * b).flatten(1).sum(1), a)

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(b > 0, a / b, 0.0)  # 0 / 0 where a row is solved

    solution, residual, direction = torch.zeros_like(right), right, right
    square = dot(right, right)
    for _ in range(iterations):
        image = operator.forward(operator.adjoint(direction)) + shift * direction
        step = ratio(square, dot(direction, image))
        solution, residual = solution + step * direction, residual - step * image
        before, square = square, dot(residual, residual)
        direction = residual + ratio(square, before) * direction
    return solution

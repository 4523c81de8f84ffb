"""Images from linear measurements: super-resolution, compressed sensing, deblurring."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.control.guidance import ScoreGuidance, check_network, gradient_through
from fastscore.control.linear_operator import LinearOperator
from fastscore.control.measurement import check_measurement, measurement_of_rows
from fastscore.control.replacement import per_row
from fastscore.samplers.base import check_number
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
        operator: A, its adjoint, and how the inverse is taken: in closed form where the singular values are known.
        measurement: y, (B, *operator.measured) floating point, one per sample, or (1, ...) for all of them.
        noise_std: standard deviation of the noise of the measurement, >= 0.
        data_std: s, the standard deviation of the pixels of the data, > 0.
        scale: see `ScoreGuidance`.
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
        convention: Convention | None = None,
    ) -> None:
        super().__init__(scale)
        name = "LinearGuidance"
        check_network(name, "network", network, convention)
        check_measurement(name, operator, measurement)
        check_number(name, "noise_std", noise_std, least=0.0)
        check_number(name, "data_std", data_std, above=0.0)
        self.network, self.operator, self.measurement, self.convention = network, operator, measurement, convention
        self.noise_std, self.data_std = float(noise_std), float(data_std)

    def extra_score(self, x: Tensor, moment: Moment) -> Tensor:
        y = measurement_of_rows("LinearGuidance", self.operator, self.measurement, x, moment)
        alpha, sigma = (value.square() for value in moment.sde.marginal(moment.t))
        variance = sigma * self.data_std**2 / (sigma + alpha * self.data_std**2)

        def pull(clean: Tensor) -> Tensor:
            residual = (y - self.operator.forward(clean)).to(accumulation_dtype(x.dtype))
            weights = self.operator.solve(residual, per_row(self.noise_std**2 / variance, residual))
            return self.operator.adjoint(weights / per_row(variance, residual))

        return gradient_through(self.network, self.convention, x, moment, pull)

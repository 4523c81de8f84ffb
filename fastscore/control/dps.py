"""Diffusion posterior sampling, manifold-constrained gradients: after each step, a step towards the measurement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.control.guidance import check_network, gradient_through
from fastscore.control.linear_operator import LinearOperator
from fastscore.control.measurement import check_measurement, measurement_of_rows
from fastscore.control.replacement import per_row
from fastscore.samplers.base import check_number
from fastscore.samplers.hooks import Hook, Moment
from fastscore.score import Convention

__all__ = ["DPSGuidance"]


class DPSGuidance(Hook):
    """Moves the state, after every step, by ``-zeta grad |y - A D(x)|`` with x the state before the step.

    D is the clean image that the network predicts, and the gradient is taken through it; |.| is the Euclidean norm, of
    each sample. This is the published step ``zeta_i grad |y - A D|^2`` with ``zeta_i`` in inverse proportion to
    ``|y - A D|``, and its length has nothing to do with that of the sampler's step: a zeta belongs to a number of steps
    (published: 0.3 to 1 for 1,000 of DDPM, for images in [-1, 1]). `LinearGuidance` is the one that is a score. Costs a
    forward and a backward of the network per step beside the sampler's own.

    After a `LinearReplacement` or `Inpainting` of the same measurement in ``hooks`` it is the manifold-constrained
    gradient: the gradient is taken at the state whose measured part has been replaced.

    Args:
        network: called as ``network(x, times)``, differentiable in x; as a rule the model of the sampler.
        operator: A and its adjoint.
        measurement: y, (B, *operator.measured) floating point, one per sample, or (1, ...) for all of them.
        zeta: length of the step where the network and A are isometries, >= 0.
        convention: how to read the network; by default ``network.convention``, or what was published with the SDE.

    Raises:
        TypeError, ValueError: for a bad argument; when sampling, images or measurements do not fit, or the network is
            not differentiable.

    Source: Chung et al., arXiv 2209.14687, algorithm 1, whose formula has twice the zeta of its program, which is that
    of this one; Chung et al., arXiv 2206.00941, eq. 14 and 15.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        operator: LinearOperator,
        measurement: Tensor,
        *,
        zeta: float,
        convention: Convention | None = None,
    ) -> None:
        check_network("DPSGuidance", "network", network, convention)
        check_measurement("DPSGuidance", operator, measurement)
        check_number("DPSGuidance", "zeta", zeta, least=0.0)
        self.network, self.operator, self.measurement, self.convention = network, operator, measurement, convention
        self.zeta = float(zeta)
        self._descent: Tensor  # of the step that is under way

    def before_step(self, x: Tensor, moment: Moment) -> None:
        y = measurement_of_rows("DPSGuidance", self.operator, self.measurement, x, moment)

        def pull(clean: Tensor) -> Tensor:
            residual = (y - self.operator.forward(clean)).to(accumulation_dtype(x.dtype))
            length = per_row(residual.flatten(1).norm(dim=1), residual)
            return self.operator.adjoint(torch.where(length > 0, residual / length, 0.0))

        self._descent = gradient_through(self.network, self.convention, x, moment, pull)

    def after_step(self, x: Tensor, moment: Moment) -> Tensor:
        return x + self.zeta * self._descent

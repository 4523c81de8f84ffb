"""Replacement by a linear measurement: super-resolution, compressed sensing, colorization with any weights."""

from __future__ import annotations

from torch import Tensor

from fastscore._checks import accumulation_dtype
from fastscore.control.linear_operator import LinearOperator
from fastscore.control.measurement import check_images, check_measurement
from fastscore.control.replacement import Replacement

__all__ = ["LinearReplacement"]


class LinearReplacement(Replacement):
    """Keeps what was measured, ``y = A x_0`` without noise: in the samples, and noised to its time before every step.

    What is replaced is the part of the state in the range of A^T: ``x + A^+ (alpha y + sigma A z - A x)``; the rest,
    which A does not see, is left to the sampler. As exact as the pseudo-inverse: up to rounding where the operator
    knows its singular values.

    Args:
        operator: A, its adjoint, and how to go back.
        measurement: y, (B, *operator.measured) floating point, one per sample, or (1, ...) for all of them.

    Raises:
        TypeError, ValueError: operator is not a `LinearOperator`, or measurement is not finite, or does not fit it;
            when sampling, they do not fit the state.

    Source: Song et al., arXiv 2011.13456, appendix I; for any A: Song et al., Solving inverse problems in medical
    imaging with score-based generative models, ICLR 2022, section 3.2.
    """

    known_name = "measurement"

    def __init__(self, operator: LinearOperator, measurement: Tensor) -> None:
        check_measurement("LinearReplacement", operator, measurement)
        super().__init__(measurement)
        self.operator = operator

    def part(self, x: Tensor) -> Tensor:
        check_images("LinearReplacement", self.operator, x)
        return self.operator.forward(x.to(accumulation_dtype(x.dtype)))

    def lift(self, part: Tensor) -> Tensor:
        return self.operator.pseudo_inverse(part)

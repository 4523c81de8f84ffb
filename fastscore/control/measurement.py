"""A measurement of images by a linear operator: checked when it is given, and against the state when sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._checks import is_state, same_device, wrong_type, wrong_value
from fastscore.control.linear_operator import LinearOperator
from fastscore.samplers.hooks import Moment

__all__ = ["check_images", "check_measurement", "measurement_of_rows"]


def check_measurement(owner: str, operator: object, measurement: object) -> None:
    """Raise TypeError or ValueError unless the measurement is one of the operator, (B, *operator.measured), finite."""
    if not isinstance(operator, LinearOperator):
        wrong_type(owner, "operator", "be a LinearOperator", type(operator).__name__)
    is_state(owner, "measurement", measurement)
    assert isinstance(measurement, Tensor)
    if measurement.shape[1:] != operator.measured:
        accepted = f"have shape (B, ...) with ... what the operator measures, {operator.measured}"
        wrong_value(owner, "measurement", accepted, tuple(measurement.shape))
    if not bool(torch.isfinite(measurement).all()):
        wrong_value(owner, "measurement", "be finite", "NaN or infinity")


def check_images(owner: str, operator: LinearOperator, x: Tensor) -> None:
    """Raise ValueError unless the operator is for images like the states x."""
    if x.shape[1:] != operator.shape:
        wrong_value(owner, "operator", f"be for images of shape {tuple(x.shape[1:])}", operator.shape)


def measurement_of_rows(owner: str, operator: LinearOperator, measurement: Tensor, x: Tensor, moment: Moment) -> Tensor:
    """The measurements that belong to the states x; raises ValueError where they, or the operator, do not fit."""
    check_images(owner, operator, x)
    same_device(owner, "measurement", measurement, x, "the state")
    return moment.of_rows(measurement, f"{owner}: measurement")

"""Class labels of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from fastscore._checks import wrong_type, wrong_value
from fastscore.samplers.base import check_count

__all__ = ["check_labels"]


def check_labels(owner: str, labels: object, classes: int) -> Tensor:
    """The labels, which must be int64 (B,) in [0, classes); raises TypeError or ValueError."""
    check_count(owner, "classes", classes, 1)
    if not isinstance(labels, Tensor):
        wrong_type(owner, "labels", "be an int64 tensor of shape (B,)", type(labels).__name__)
    if labels.dtype != torch.int64:
        wrong_type(owner, "labels", "be int64", labels.dtype)
    if labels.ndim != 1:
        wrong_value(owner, "labels", "have shape (B,), or (1,) for all samples", tuple(labels.shape))
    if bool(((labels < 0) | (labels >= classes)).any()):
        wrong_value(owner, "labels", f"lie in [0, {classes})", labels.tolist())
    return labels

"""Argument checks of the ops, in one style: op, argument, what is accepted, what came."""

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an op computes, and in which it takes coefficients: float32, or float64 for float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def wrong_value(op: str, argument: str, accepted: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {argument} must {accepted}, got {got}")


def wrong_type(op: str, argument: str, accepted: str, got: object) -> NoReturn:
    raise TypeError(f"{op}: {argument} must {accepted}, got {got}")


def is_state(op: str, argument: str, x: object) -> None:
    """`x` is a floating-point tensor with a batch dimension."""
    if not isinstance(x, Tensor):
        wrong_type(op, argument, "be a tensor", type(x).__name__)
    if x.dtype not in FLOATING:
        wrong_type(op, argument, "be float32, float64, bfloat16 or float16", x.dtype)
    if x.dim() == 0:
        wrong_value(op, argument, "have a batch dimension", "shape ()")


def match(op: str, argument: str, values: Sequence[object], x: Tensor, of: str = "x") -> None:
    """Each of `values` is a tensor like `x`, which messages call `of`; they call the values argument[0] ..."""
    shape, dtype, device = x.shape, x.dtype, x.device
    for i, value in enumerate(values):
        # The common case first and in one line: this runs at every step of a sampler.
        if isinstance(value, Tensor) and value.dtype == dtype and value.shape == shape and value.device == device:
            continue
        matches(op, f"{argument}[{i}]", value, x, of)


def matches(op: str, argument: str, value: object, x: Tensor, of: str = "x") -> None:
    """`value` is a tensor of the shape, dtype and device of `x`, which messages call `of`."""
    if not isinstance(value, Tensor):
        wrong_type(op, argument, "be a tensor", type(value).__name__)
    if value.dtype != x.dtype:
        wrong_type(op, argument, f"have the dtype of {of}, {x.dtype}", value.dtype)
    if value.shape != x.shape:
        wrong_value(op, argument, f"have the shape of {of}, {tuple(x.shape)}", tuple(value.shape))
    same_device(op, argument, value, x, of)


def same_device(op: str, argument: str, value: Tensor, x: Tensor, of: str = "x") -> None:
    if value.device != x.device:
        wrong_value(op, argument, f"be on the device of {of}, {x.device}", value.device)


def coefficients(op: str, value: object, x: Tensor, columns: int, names: str, of: str = "x") -> None:
    """`value` is a tensor of shape (columns,) or (B, columns) in the accumulation dtype of `x`, on its device."""
    argument = "coefficients"
    if not isinstance(value, Tensor):
        wrong_type(op, argument, "be a tensor", type(value).__name__)
    dtype = accumulation_dtype(x.dtype)
    if value.dtype != dtype:
        wrong_type(op, argument, f"be {dtype} for {x.dtype} tensors", value.dtype)
    shape = value.shape
    if shape != (columns,) and shape != (x.shape[0], columns):
        accepted = f"have shape ({columns},) or ({x.shape[0]}, {columns}), that is {names}"
        wrong_value(op, argument, accepted, tuple(shape))
    same_device(op, argument, value, x, of)


def noise_source(op: str, x: Tensor, noise: object, rng: object, samples: object) -> None:
    """Noise is given, or drawn by (rng, samples), or neither."""
    if noise is not None:
        if rng is not None or samples is not None:
            wrong_value(op, "noise", "stand alone: either noise, or rng and samples", "both")
        matches(op, "noise", noise, x)
    elif rng is not None or samples is not None:
        indices(op, "rng", rng, x, 2, "(seed, draw)")
        indices(op, "samples", samples, x, x.shape[0], "the index of each row")


def indices(op: str, argument: str, value: object, x: Tensor, length: int, what: str) -> None:
    if value is None:
        wrong_value(op, argument, f"be given with {'samples' if argument == 'rng' else 'rng'}", None)
    if not isinstance(value, Tensor):
        wrong_type(op, argument, f"be an int64 tensor, {what}", type(value).__name__)
    if value.dtype != torch.int64:
        wrong_type(op, argument, f"be an int64 tensor, {what}", value.dtype)
    if value.shape != (length,):
        wrong_value(op, argument, f"have shape ({length},), {what}", tuple(value.shape))
    same_device(op, argument, value, x)

"""Bits per dimension of quantized data, and its uniform dequantization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastscore import _checks
from fastscore.likelihood.log_likelihood import Likelihood, log_likelihood
from fastscore.noise import Noise, as_noise
from fastscore.samplers.base import check_count, check_number
from fastscore.sde import SDE

__all__ = ["BitsPerDim", "bits_per_dim", "check_levels", "dequantize", "in_bits", "level_range"]


@dataclass(frozen=True)
class BitsPerDim(Likelihood):
    """A `Likelihood`, and the code length of the quantized data; float64 (B,).

    Attributes:
        bits_per_dim: an upper bound of -log2 P(levels) / D, see `bits_per_dim`.
        bits_standard_error: of it over the probes, see `Likelihood`.
    """

    bits_per_dim: Tensor
    bits_standard_error: Tensor


def bits_per_dim(
    sde: SDE,
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    data_range: Sequence[float],
    bits: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    noise: Noise | None = None,
    **options: Any,
) -> BitsPerDim:
    """Computes the bits per dimension of data of `bits` bits, from `log_likelihood` of its uniform dequantization.

    A level takes an interval of width w = (high - low) / 2^bits, and by Jensen's inequality
    ``-log2 P(levels) <= E[-log2 p(x)] - D log2 w`` over uniform x in the intervals (Theis et al., arXiv 1511.01844,
    section 3.1): ``-log p(x) / (D log 2) + bits - log2(high - low)``, which adds 7 for 8 bits in [-1, 1] and 8 in
    [0, 1]. One draw of x is taken; published values average several.

    Args:
        sde, model: see `log_likelihood`.
        x: the levels (B, ...), integers in [0, 2^bits), which are dequantized; or data that was dequantized before
            (`dequantize`), floating-point within `data_range`.
        data_range: (low, high), what the levels 0 and 2^bits stand for on the scale the network was trained on.
        bits: depth of the data, 1 to 16.
        dtype: of the data made from levels.
        seed, noise: of the dequantization, draw 0, and of the probes.
        options: of `log_likelihood`.

    Raises:
        ValueError, TypeError: an argument does not fit, or data lies outside its range; the message names it.
    """
    low, high = level_range("bits_per_dim", data_range, bits)
    source = as_noise(seed, noise)
    if isinstance(x, Tensor) and not x.is_floating_point():
        x = dequantize(x, data_range=data_range, bits=bits, dtype=dtype, noise=source)
    else:
        _checks.is_state("bits_per_dim", "x", x)
        inside = (x >= low) & (x <= high)  # also false for NaN
        if not bool(inside.all()):
            count, got = int((~inside).sum()), f"{float(x.min()):g} to {float(x.max()):g}"
            _checks.wrong_value(
                "bits_per_dim", "x", f"lie in data_range, [{low:g}, {high:g}]", f"{got}, outside at {count} elements"
            )
    result = log_likelihood(sde, model, x, noise=source, **options)
    dims = math.prod(x.shape[1:])
    length = in_bits(result.log_likelihood, dims, data_range, bits)
    plain = {field.name: getattr(result, field.name) for field in fields(result)}
    return BitsPerDim(**plain, bits_per_dim=length, bits_standard_error=result.standard_error / (dims * math.log(2)))


def in_bits(log_density: Tensor, dims: int, data_range: Sequence[float], bits: int) -> Tensor:
    """Bits per dimension of a log-density in nats of `dims` dimensions on the scale of `data_range`."""
    low, high = level_range("in_bits", data_range, bits)
    return -log_density / (dims * math.log(2)) + bits - math.log2(high - low)


def dequantize(
    levels: Tensor,
    *,
    data_range: Sequence[float],
    bits: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    noise: Noise | None = None,
) -> Tensor:
    """Spreads levels uniformly over their intervals: ``low + (high - low) (level + u) / 2^bits``, u in [0, 1].

    Args:
        levels: integers in [0, 2^bits), (B, ...).
        data_range: (low, high), what the levels 0 and 2^bits stand for.
        bits: depth of the data, 1 to 16.
        dtype: of the result.
        seed, noise: u is the normal distribution function of draw 0, so that a sample's does not depend on its batch.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    op = "dequantize"
    low, high = level_range(op, data_range, bits)
    check_levels(op, "levels", levels, bits)
    if dtype not in _checks.FLOATING:
        _checks.wrong_type(op, "dtype", "be float32, float64, bfloat16 or float16", dtype)
    z = as_noise(seed, noise).normal(levels.shape, dtype=torch.float32, device=levels.device, draw=0)
    u = torch.special.ndtr(z.to(torch.float64))
    return (low + (high - low) * (levels + u) / 2**bits).to(dtype)


def check_levels(op: str, name: str, levels: object, bits: int) -> None:
    """Raise unless levels are integers in [0, 2^bits), of shape (B, ...)."""
    if not isinstance(levels, Tensor):
        _checks.wrong_type(op, name, "be a tensor of integers", type(levels).__name__)
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        _checks.wrong_type(op, name, "be a tensor of integers", levels.dtype)
    if levels.dim() == 0:
        _checks.wrong_value(op, name, "have a batch dimension", "shape ()")
    if levels.numel():
        least, most = (int(bound) for bound in torch.aminmax(levels.to(torch.int64)))
        if least < 0 or most >= 2**bits:
            _checks.wrong_value(op, name, f"lie in [0, 2^bits) = [0, {2**bits})", f"{least} to {most}")


def level_range(op: str, data_range: Sequence[float], bits: int) -> tuple[float, float]:
    """``(low, high)``; raises ValueError or TypeError for another range or depth."""
    check_count(op, "bits", bits, 1)
    if bits > 16:
        _checks.wrong_value(op, "bits", "be at most 16", bits)
    try:
        low, high = data_range
    except (TypeError, ValueError):
        _checks.wrong_value(op, "data_range", "be a pair (low, high)", repr(data_range))
    check_number(op, "data_range[0]", low)
    check_number(op, "data_range[1]", high, above=low)
    return float(low), float(high)

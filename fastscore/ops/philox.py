"""Counter-based noise as tensors; most of it never exists as such, because the kernels draw it where they use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference


def philox_normal(shape: Sequence[int], rng: Tensor, samples: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals: row b holds the noise of sample `samples[b]` at draw `rng[1]` of seed `rng[0]`.

    What `linear_step` and `langevin_step` draw for the same `rng` and `samples`; `fastscore.reference.philox` is the
    definition, which this equals bit for bit in its random words and within 4 units in the last place in its normals.

    Args:
        shape: (B, ...); elements are counted in row-major order within a row, at most 2^34 of them.
        rng: int64 [2] = (seed, draw).
        samples: int64 [B], on the device of `rng`, which is also that of the result.
        dtype: float32, float64, bfloat16 or float16.

    Returns:
        Contiguous tensor of `shape`.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    return _draw("philox_normal", reference.philox_normal, shape, rng, samples, dtype)


def philox_rademacher(shape: Sequence[int], rng: Tensor, samples: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random signs, +1 or -1, with arguments and result as in `philox_normal`."""
    return _draw("philox_rademacher", reference.philox_rademacher, shape, rng, samples, dtype)


def _draw(
    name: str,
    plain: Callable[..., Tensor],
    shape: Sequence[int],
    rng: Tensor,
    samples: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    if len(shape) == 0:
        _checks.wrong_value(name, "shape", "be (B, ...)", "()")
    if dtype not in _checks.FLOATING:
        _checks.wrong_type(name, "dtype", "be float32, float64, bfloat16 or float16", dtype)
    _checks.indices(name, "rng", rng, rng, 2, "(seed, draw)")
    _checks.indices(name, "samples", samples, rng, shape[0], "the index of each row")
    if _backend.reference_asked(rng.device):
        return plain(shape, rng, samples, dtype)
    return _backend.op(name)(rng, samples, shape, dtype)

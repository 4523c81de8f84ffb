"""Counter-based noise as tensors: what the step kernels draw in registers, written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._philox import normal4, signs128

_BLOCK = 2048  # elements to a program


@triton.jit
def philox_normal_kernel(out, rng, samples, size, tiles, wide: tl.constexpr, block: tl.constexpr):
    """out[b, i] = normal i of samples[b]; one program per tile of a row."""
    program = tl.program_id(0)
    row, number = (program // tiles).to(tl.int64), program % tiles
    blocks, offset = _tile(number, 4, wide, block)
    dtype: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    noise = normal4(tl.load(rng), tl.load(rng + 1), tl.load(samples + row), blocks, dtype)
    tl.store(out + row * size + offset, tl.reshape(noise, (block,)).to(out.dtype.element_ty), offset < size)


@triton.jit
def philox_rademacher_kernel(out, rng, samples, size, tiles, wide: tl.constexpr, block: tl.constexpr):
    """out[b, i] = sign i of samples[b]; one program per tile of a row."""
    program = tl.program_id(0)
    row, number = (program // tiles).to(tl.int64), program % tiles
    blocks, offset = _tile(number, 128, wide, block)
    noise = signs128(tl.load(rng), tl.load(rng + 1), tl.load(samples + row), blocks)
    tl.store(out + row * size + offset, tl.reshape(noise, (block,)).to(out.dtype.element_ty), offset < size)


@triton.jit
def _tile(number, per_block: tl.constexpr, wide: tl.constexpr, block: tl.constexpr):
    """The Philox blocks of a tile and its elements."""
    blocks, offset = tl.arange(0, block // per_block), tl.arange(0, block)
    if wide:
        blocks, offset, number = blocks.to(tl.int64), offset.to(tl.int64), number.to(tl.int64)
    return number * (block // per_block) + blocks, number * block + offset


def philox_normal(rng: Tensor, samples: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`fastscore.ops.philox_normal`, its arguments checked."""
    return _draw(philox_normal_kernel, rng, samples, shape, dtype)


def philox_rademacher(rng: Tensor, samples: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`fastscore.ops.philox_rademacher`, its arguments checked."""
    return _draw(philox_rademacher_kernel, rng, samples, shape, dtype)


def _draw(kernel: Any, rng: Tensor, samples: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    out = rng.new_empty(shape, dtype=dtype)
    if out.numel() == 0:
        return out
    size = math.prod(shape[1:])
    tiles = triton.cdiv(size, _BLOCK)
    launch(
        kernel,
        shape[0] * tiles,
        out.device,
        out,
        rng.contiguous(),
        samples.contiguous(),
        size,
        tiles,
        wide=size >= 2**31 - _BLOCK,
        block=_BLOCK,
        num_warps=4 if out.element_size() == 2 else 8,
    )
    return out

"""The memory format of results: that of the input where the input fills a block of memory, else contiguous."""

import torch
from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Whether the elements of `x` fill a block of memory without gap or overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return x.numel() > 0


def with_strides_of(x: Tensor, out: Tensor) -> Tensor:
    """`out`, copied if it must be, with the strides of `x` where `x` is dense, else contiguous."""
    if not is_dense(x):
        return out.contiguous()
    if out.stride() == x.stride():
        return out
    return torch.empty_strided(x.shape, x.stride(), dtype=out.dtype, device=out.device).copy_(out)

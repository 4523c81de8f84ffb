"""A convolution of packed weights with what stands in front of it and behind it, written into memory that is given.

The direct one: kernels of 1 and 3, strides 1 and 2, linear layers as images of one row.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastscore.reference.conv3x3 import behind, enlarged, in_front


def conv_gemm_weights(weight: Tensor, panel: int) -> Tensor:
    """(K, C, k, k) or (K, C) -> (ceil(K / panel), k * k * C, panel), zeros behind the last output."""
    outputs = weight.shape[0]
    panels = -(-outputs // panel)
    rows = weight.flatten(2).transpose(1, 2).reshape(outputs, -1) if weight.dim() == 4 else weight
    return F.pad(rows, (0, 0, 0, panels * panel - outputs)).unflatten(0, (panels, panel)).transpose(1, 2).contiguous()


def conv_gemm_into(
    x: Tensor,
    weights: Tensor,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    bias: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    scale: float,
    gain: Tensor | None,
    offset: Tensor | None,
    silu: bool,
    upsample: bool,
    out: Tensor,
) -> None:
    """Writes (conv(act(gain x + offset)) + bias + shift + residual) scale.

    Args:
        x: (B, C, H, W).
        weights: see `conv_gemm_weights`.
        outputs: K.
        kernel: k, 1 or 3.
        stride: 1 or 2.
        padding: rows and columns of zeros in front of the image; behind it are as many as `out` needs.
        bias: (K,).
        shift: (B, K).
        residual: like `out`.
        scale: a factor of all.
        gain, offset: (B, C), both or neither.
        silu: whether SiLU stands behind them.
        upsample: whether the convolution is one of x enlarged twice by nearest neighbor.
        out: (B, K, H', W').
    """
    x = in_front(x, gain, offset, silu)
    if upsample:
        x = enlarged(x)
    weight = weights.transpose(1, 2).flatten(0, 1)[:outputs].unflatten(1, (kernel, kernel, -1)).permute(0, 3, 1, 2)
    down, across = (
        (size - 1) * stride + kernel - before - padding for size, before in zip(out.shape[2:], x.shape[2:], strict=True)
    )
    y = F.conv2d(F.pad(x, (padding, across, padding, down)), weight, stride=stride)
    out.copy_(behind(y, bias, shift, residual, scale))

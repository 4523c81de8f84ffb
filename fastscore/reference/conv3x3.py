"""A 3x3 convolution with what stands in front of it and behind it in a residual block, in plain PyTorch.

And the same by Winograd's algorithm F(m x m, 3 x 3) (Lavin and Gray, arXiv 1509.09308), which the kernels follow: an
image is cut into tiles of m x m outputs, whose inputs and weights are transformed, multiplied point by point, and
transformed back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore.reference.group_norm_silu import channels_last

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.625, -0.625, 1.5, -1.5)}
"""Where polynomials are evaluated, beside infinity, for tiles of 2 and of 4 (csrc/cpu/simd/winograd.h)."""


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    silu: bool = False,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """(conv(act(gain x + offset), weight) + bias + shift + residual) scale; arguments as in `fastscore.ops.conv3x3`."""
    out = F.conv2d(in_front(x, gain, offset, silu), weight, bias, padding=1)
    return behind(out, None, shift, residual, scale)


def in_front(x: Tensor, gain: Tensor | None, offset: Tensor | None, silu: bool) -> Tensor:
    """act(gain x + offset)."""
    if gain is not None and offset is not None:
        x = torch.addcmul(offset[:, :, None, None], x, gain[:, :, None, None])
    return F.silu(x) if silu else x


def enlarged(x: Tensor) -> Tensor:
    """Twice as many rows and columns, by nearest neighbor."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def behind(out: Tensor, bias: Tensor | None, shift: Tensor | None, residual: Tensor | None, scale: float) -> Tensor:
    """(out + bias + shift + residual) scale."""
    if bias is not None:
        out = out + bias[:, None, None]
    if shift is not None:
        out = out + shift[:, :, None, None]
    if residual is not None:
        out = out + residual
    return out if scale == 1 else out * scale


def matrices(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the transforms of inputs (m + 2, m + 2), weights (m + 2, 3) and products (m, m + 2); float64.

    Rows belong to the points, the last one to infinity. Inputs get the polynomials that vanish at all points but one,
    which are not divided by their value there: the weights are.
    """
    points = POINTS[tile]
    inputs, weights, products = (
        torch.zeros(n, dtype=torch.float64) for n in ((tile + 2, tile + 2), (tile + 2, 3), (tile, tile + 2))
    )
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        inputs[i, : tile + 1] = _polynomial(others)
        weights[i] = torch.tensor([1, p, p * p], dtype=torch.float64) / math.prod(p - q for q in others)
        products[:, i] = torch.tensor([p**k for k in range(tile)], dtype=torch.float64)
    inputs[-1] = _polynomial(points)
    weights[-1, -1] = products[-1, -1] = 1
    return inputs, weights, products


def _polynomial(roots: list[float] | tuple[float, ...]) -> Tensor:
    """The product of x - root: its coefficients, those of low powers first."""
    result = torch.ones(1, dtype=torch.float64)
    for root in roots:
        result = F.pad(result, (1, 0)) - root * F.pad(result, (0, 1))
    return result


def conv3x3_weights(weight: Tensor, tile: int, panel: int) -> Tensor:
    """(K, C, 3, 3) -> (ceil(K / panel), (tile + 2)^2, C, panel), zeros behind the last output.

    Computed in float64 and rounded once, to the dtype of the weights, or to float32 if that is wider.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    outputs, channels = weight.shape[:2]
    matrix = matrices(tile)[1].to(weight.device)
    points = torch.einsum("ip,kcpq,jq->ijck", matrix, weight.double(), matrix).to(dtype)
    panels = -(-outputs // panel)
    padded = F.pad(points.flatten(0, 1), (0, panels * panel - outputs))
    return padded.reshape(-1, channels, panels, panel).permute(2, 0, 1, 3).contiguous()


def turned(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (C, K, 3, 3): of the convolution that gives the gradient in the input."""
    return weight.flip(2, 3).transpose(0, 1)


def conv3x3_winograd(
    x: Tensor,
    weights: Tensor,
    outputs: int,
    tile: int,
    bias: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    scale: float,
    gain: Tensor | None,
    offset: Tensor | None,
    silu: bool,
) -> Tensor:
    """`conv3x3` of weights that are transformed; in the layout and the dtype of x, computed in that of the weights."""
    last, (batch, channels, height, width) = channels_last(x), x.shape
    bias, shift, residual, gain, offset = (
        None if part is None else part.to(weights.dtype) for part in (bias, shift, residual, gain, offset)
    )
    to_input, _, to_output = (matrix.to(weights) for matrix in matrices(tile))
    down, across = (-(-n // tile) for n in (height, width))
    padded = F.pad(
        in_front(x.to(weights.dtype), gain, offset, silu), (1, across * tile + 1 - width, 1, down * tile + 1 - height)
    )
    tiles = padded.unfold(2, tile + 2, tile).unfold(3, tile + 2, tile)
    points = torch.einsum("ip,bcyxpq,jq->ijbyxc", to_input, tiles, to_input)
    matrix = weights.permute(1, 2, 0, 3).reshape(tile + 2, tile + 2, channels, -1)[..., :outputs]
    products = torch.einsum("ijbyxc,ijck->bkyxij", points, matrix)
    out = torch.einsum("ip,bkyxpq,jq->bkyixj", to_output, products, to_output)
    out = out.reshape(batch, outputs, down * tile, across * tile)[:, :, :height, :width]
    out = behind(out, bias, shift, residual, scale).to(x.dtype)
    return out.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def conv3x3_winograd_into(
    x: Tensor,
    weights: Tensor,
    outputs: int,
    tile: int,
    bias: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    scale: float,
    gain: Tensor | None,
    offset: Tensor | None,
    silu: bool,
    upsample: bool,
    statistics: Tensor | None,
    out: Tensor,
) -> None:
    """`conv3x3_winograd` into `out`; `upsample`: of x enlarged twice by nearest neighbor.

    statistics: (B, ceil(H / tile), 3, K), gets a center, and the sums of differences from it and of their squares, of
    each output over each strip of `tile` rows of out.
    """
    if upsample:
        x = enlarged(x)
    out.copy_(conv3x3_winograd(x, weights, outputs, tile, bias, shift, residual, scale, gain, offset, silu))
    if statistics is not None:
        for place, strip in zip(statistics.unbind(1), out.split(tile, dim=2), strict=True):
            center = strip.mean((2, 3), keepdim=True)
            off = strip - center
            place.copy_(torch.stack([center[:, :, 0, 0], off.sum((2, 3)), off.square().sum((2, 3))], 1))

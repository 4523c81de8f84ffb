"""Tensors laid out in memory in every way a user may hand them over."""

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced", "expanded", "empty")
"""What `as_layout` knows; every layout of four-dimensional tensors that an operator has to take."""


def as_layout(tensor: Tensor, layout: str) -> Tensor:
    """The values of `tensor` [N, C, H, W] (or of any rank for layouts other than channels_last) laid out as `layout`.

    contiguous     dense, last dimension fastest
    channels_last  dense, channels fastest (rank 4)
    permuted       dense, dimensions stored in reversed order
    sliced         every other row and column of a larger buffer, offset by one: neither dense nor aligned.
                   What lies between is NaN, so that a kernel reading past its elements shows
    expanded       the first row, repeated with stride 0 along the batch
    empty          no rows
    """
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "permuted":
        order = tuple(range(tensor.ndim - 1, -1, -1))
        return tensor.permute(order).contiguous().permute(order)
    if layout == "sliced":
        buffer = tensor.new_full([2 * size + 1 for size in tensor.shape], float("nan"))
        view = buffer[tuple(slice(1, None, 2) for _ in tensor.shape)]
        return view.copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    if layout == "empty":
        return tensor[:0]
    raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def apart(tensor: Tensor, gap: int) -> Tensor:
    """The values of `tensor` (B, ...), whose samples are dense, in samples with `gap` elements of NaN between them."""
    stride = tensor[0].numel() + gap
    buffer = tensor.new_full((tensor.shape[0], stride), float("nan"))
    return buffer.as_strided(tensor.shape, (stride, *tensor.stride()[1:])).copy_(tensor)


def among_channels(image: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """The values of `image` (B, C, H, W) as a slice of the channels of a channels-last tensor, NaN elsewhere.

    Returns:
        The slice, which stands behind `before` channels and in front of `after`, and the whole tensor.
    """
    batch, channels, height, width = image.shape
    whole = image.new_full((batch, height, width, before + channels + after), float("nan")).movedim(-1, 1)
    return whole[:, before : before + channels].copy_(image), whole


def make_input(
    shape: tuple[int, ...],
    layout: str = "contiguous",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mean: float = 0.0,
    scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Normals of `shape` in `layout` with that mean and scale: the same values for every layout, dtype and device.

    A mean of 1e3 exposes statistics that cancel: E[x^2] - E[x]^2 has no correct digit left in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    values = mean + scale * torch.randn(shape, dtype=torch.float64, generator=generator)
    return as_layout(values.to(device=device, dtype=dtype), layout)

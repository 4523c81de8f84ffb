"""Zero-stuffing, padding, FIR filter and decimation, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastscore.reference.group_norm_silu import channels_last


def resample(x: Tensor, taps: Tensor, *, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Up- and downsampling by a FIR filter; arguments as in `fastscore.ops.resample`."""
    return resample_to(x, taps, up, down, padding[0], resampled_size(x, taps, up, down, padding))


def resampled_size(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int]) -> list[int]:
    """(H', W') of the result; below 1 where the filter is longer than what it is to slide over."""
    return [(n * up + sum(padding) - taps.shape[0]) // down + 1 for n in x.shape[2:]]


def resample_to(
    x: Tensor, taps: Tensor, up: int, down: int, before: int, size: Sequence[int], flip: bool = False
) -> Tensor:
    """The same for a result of any size (H', W'): beyond the padding there are zeros.

    y[i, j] = sum over a, b in [0, L) of taps[L - 1 - a, L - 1 - b] z[down i + a - before, down j + b - before], where
    z[up i, up j] = x[i, j], and z is 0 at all other places. `flip` has taps[a, b] in place of the taps of this formula.
    It closes the family under transposition: the adjoint of (up, down, before, flip) is (down, up, L - 1 - before,
    not flip).

    Sums are in float32, or float64 for float64. Channels last where x is, else contiguous.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.numel() == 0 or 0 in size:
        out = x.new_zeros((*x.shape[:2], *size))
    else:
        # convolutions of torch do not flip, transposed ones do
        weight = (taps if flip != (up == 2) else taps.flip(0, 1)).to(dtype).expand(x.shape[1], 1, -1, -1)
        filtered = _stuffed if up == 2 else _decimated
        out = filtered(x.to(dtype), weight, down, before, size).to(x.dtype)
    if channels_last(x):
        return out.movedim(1, -1).contiguous().movedim(-1, 1)
    return out.contiguous()


def resample_into(x: Tensor, taps: Tensor, up: int, down: int, before: int, flip: bool, out: Tensor) -> None:
    """`resample_to`, into `out` (B, C, H', W')."""
    out.copy_(resample_to(x, taps, up, down, before, out.shape[2:], flip))


def _decimated(x: Tensor, weight: Tensor, down: int, before: int, size: Sequence[int]) -> Tensor:
    length = weight.shape[-1]
    after = [(m - 1) * down + length - before - n for m, n in zip(size, x.shape[2:], strict=True)]
    if before >= 0 and all(before - down < a <= before for a in after):  # padding behind the last row does no harm
        return F.conv2d(x, weight, stride=down, padding=before, groups=x.shape[1])
    padded = F.pad(x, (before, after[1], before, after[0]))
    return F.conv2d(padded, weight, stride=down, groups=x.shape[1])


def _stuffed(x: Tensor, weight: Tensor, down: int, before: int, size: Sequence[int]) -> Tensor:
    """A transposed convolution is the same without the multiplications by zeros; then what lies outside is cut off."""
    length = weight.shape[-1]
    first = length - 1 - before
    full = [2 * (n - 1) + length for n in x.shape[2:]]
    more = [first + m - n for m, n in zip(size, full, strict=True)]  # rows beyond the end
    extra = [first + n for n in more]
    if first >= 0 and all(n in (0, 1) for n in extra):
        return F.conv_transpose2d(x, weight, stride=2, padding=first, output_padding=extra, groups=x.shape[1])
    return F.pad(F.conv_transpose2d(x, weight, stride=2, groups=x.shape[1]), (-first, more[1], -first, more[0]))

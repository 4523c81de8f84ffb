"""Known elements of a state are replaced, on a GPU: only they are read and written, noise is drawn in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch
from ._states import drawn, layout_of, operand, rows_of, safe_to_read, tile, tile_options


@triton.jit
def masked_replace_kernel(
    x,
    x_stride,
    known,
    known_stride,
    mask,
    mask_stride,
    noise,
    noise_stride,
    coefficients,
    coefficient_stride,
    rng,
    samples,
    pixels,
    tiles,
    channels: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """x = a known + s z where the mask is set; one program per tile of a sample."""
    program = tl.program_id(0)
    sample = (program // tiles).to(tl.int64)
    blocks, offset, there = tile(program % tiles, pixels, channels, wide, block)
    there = there & (tl.load(mask + sample * mask_stride + offset, there, other=0) != 0)
    row = coefficients + sample * coefficient_stride
    dtype: tl.constexpr = coefficients.dtype.element_ty
    value = tl.load(row) * tl.load(known + sample * known_stride + offset, there).to(dtype)
    s = tl.load(row + 1)
    if s != 0:  # noise of weight zero is not looked at
        if noise is not None:
            value += s * tl.load(noise + sample * noise_stride + offset, there).to(dtype)
        if samples is not None:
            value += s * drawn(rng, samples, sample, blocks, offset.shape, dtype)
    tl.store(x + sample * x_stride + offset, value.to(x.dtype.element_ty), there)


def masked_replace_(
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    """`fastscore.ops.masked_replace_`, its arguments checked."""
    if x.numel() == 0:
        return
    image, z = safe_to_read(known, x), None if noise is None else safe_to_read(noise, x)
    layout = layout_of(x)
    if layout is None:
        buffer = x.contiguous()
        masked_replace_(buffer, image, mask, coefficients, z, rng, samples)
        x.copy_(buffer)
        return
    rows, row_stride = rows_of(coefficients)
    options = tile_options(x, layout)
    options["num_warps"] = max(options["num_warps"], 8)  # a predicate for every element takes registers
    launch(
        masked_replace_kernel,
        x.shape[0] * layout.tiles,
        x.device,
        *operand(x, layout),
        *operand(image, layout),
        *operand(mask, layout),
        *((None, 0) if z is None else operand(z, layout)),
        rows,
        row_stride,
        None if rng is None else rng.contiguous(),
        None if samples is None else samples.contiguous(),
        layout.pixels,
        layout.tiles,
        channels=layout.channels,
        **options,
    )

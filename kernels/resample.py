"""FIR filter between zero-stuffing and decimation on a GPU: of all taps, those alone that hit pixels.

A cell is a rectangle of outputs that one thread computes from inputs it loads once. The two formats have a kernel each:
contiguous images go through registers in aligned words of four pixels, channels-last ones channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ._launch import launch, warps_of
from ._states import Layout, layout_of, operand

# Loads that are written twice are made once, because all values of a cell come before its first store.


@triton.jit
def _appended(values, value):
    return values + (value,)  # noqa: RUF005 (Triton has no starred expressions)


@triton.jit
def _zeros(count: tl.constexpr, m: tl.constexpr, n: tl.constexpr, dtype: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(count):
        zeros = _appended(zeros, tl.zeros((m, n), dtype))
    return zeros


@triton.jit
def _word(pointer, there):
    """Four neighboring pixels: pointer and there are (m, n, 4), the result four tensors (m, n)."""
    pixels = tl.load(pointer, there, other=0)
    even, odd = tl.split(tl.reshape(pixels, (there.shape[0], there.shape[1], 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _words_of_line(
    line, line_there, column, width, before: tl.constexpr, length: tl.constexpr, up: tl.constexpr, down: tl.constexpr
):
    """All words of one line of inputs that the outputs of a cell depend on, side by side."""
    pixels = ()
    for k in tl.static_range(-(before // up) // 4, (down * (4 * up - 1) + length - 1 - before) // up // 4 + 1):
        j = column + 4 * k
        pixels = pixels + _word(line + j, line_there & (j >= 0) & (j < width))
    return pixels


@triton.jit
def resample_contiguous_kernel(
    out,
    out_stride,
    x,
    x_stride,
    taps,
    planes,
    channels,
    height,
    width,
    out_height,
    out_width,
    lines,
    tiles,
    length: tl.constexpr,
    up: tl.constexpr,
    down: tl.constexpr,
    before: tl.constexpr,
    flip: tl.constexpr,
    rows: tl.constexpr,
    x_words: tl.constexpr,
    out_words: tl.constexpr,
    wide: tl.constexpr,
    m: tl.constexpr,
    n: tl.constexpr,
):
    """Cells of rows x 4 up outputs; one program per m lines of n cells, of whatever planes (B C, H, W)."""
    program = tl.program_id(0)
    outer, inner = program // tiles, program % tiles
    if wide:
        outer, inner = outer.to(tl.int64), inner.to(tl.int64)
    if x_words:  # multiples of four, as the compiler can see it
        x_stride, width = x_stride // 4 * 4, width // 4 * 4
    if out_words:
        out_stride, out_width = out_stride // 4 * 4, out_width // 4 * 4
    number = (outer * m + tl.arange(0, m))[:, None, None]
    cell = (inner * n + tl.arange(0, n))[None, :, None]
    lane = tl.arange(0, 4)[None, None, :]
    plane, cell_line = number // lines, number % lines
    sample, channel = (plane // channels).to(tl.int64), plane % channels
    source = x + sample * x_stride + channel * height * width
    target = out + sample * out_stride + channel * out_height * out_width
    dtype: tl.constexpr = taps.dtype.element_ty

    values = ()
    for p in tl.static_range(rows):
        line = _zeros(4 * up, m, n, dtype)
        for a in tl.static_range(length):
            if (down * p + a - before) % up == 0:
                i = cell_line * (rows * down // up) + (down * p + a - before) // up
                there = (plane < planes) & (i >= 0) & (i < height)
                pixels = _words_of_line(
                    source + i * width, there, cell * (4 * down) + lane, width, before, length, up, down
                )
                added = ()
                for q in tl.static_range(4 * up):
                    value = line[q]
                    for b in tl.static_range(length):
                        if (down * q + b - before) % up == 0:
                            k = a * length + b if flip else (length - 1 - a) * length + length - 1 - b
                            pixel = pixels[(down * q + b - before) // up - -(before // up) // 4 * 4]
                            value += tl.load(taps + k) * pixel.to(dtype)
                    added = _appended(added, value)
                line = added
        values = values + line
    for p in tl.static_range(rows):
        i = cell_line * rows + p
        for k in tl.static_range(up):
            j = cell * (4 * up) + 4 * k + lane
            even = tl.join(values[4 * (p * up + k)], values[4 * (p * up + k) + 2])
            odd = tl.join(values[4 * (p * up + k) + 1], values[4 * (p * up + k) + 3])
            word = tl.reshape(tl.join(even, odd), (m, n, 4)).to(out.dtype.element_ty)
            tl.store(target + i * out_width + j, word, (plane < planes) & (i < out_height) & (j < out_width))


@triton.jit
def _filtered(
    x,
    row,
    column,
    there,
    height,
    width,
    channels,
    taps,
    length: tl.constexpr,
    up: tl.constexpr,
    down: tl.constexpr,
    before: tl.constexpr,
    flip: tl.constexpr,
    p: tl.constexpr,
    q: tl.constexpr,
):
    """Output (p, q) of each cell; x points at pixel (0, 0) of its sample, row and column are the first of the cell."""
    value = tl.zeros(there.shape, taps.dtype.element_ty)
    for a in tl.static_range(length):
        if (down * p + a - before) % up == 0:
            i = row + (down * p + a - before) // up
            inside = there & (i >= 0) & (i < height)
            for b in tl.static_range(length):
                if (down * q + b - before) % up == 0:
                    j = column + (down * q + b - before) // up
                    k = a * length + b if flip else (length - 1 - a) * length + length - 1 - b
                    pixel = tl.load(x + (i * width + j) * channels, inside & (j >= 0) & (j < width), other=0)
                    value += tl.load(taps + k) * pixel.to(value.dtype)
    return value


@triton.jit
def resample_channels_last_kernel(
    out,
    out_stride,
    x,
    x_stride,
    taps,
    batch,
    channels,
    height,
    width,
    out_height,
    out_width,
    lines,
    columns,
    tiles,
    length: tl.constexpr,
    up: tl.constexpr,
    down: tl.constexpr,
    before: tl.constexpr,
    flip: tl.constexpr,
    rows: tl.constexpr,
    wide: tl.constexpr,
    m: tl.constexpr,
    n: tl.constexpr,
):
    """Cells of rows x up outputs of one channel; one program per m cells of n channels."""
    program = tl.program_id(0)
    outer, inner = program // tiles, program % tiles
    if wide:
        outer, inner = outer.to(tl.int64), inner.to(tl.int64)
        width, out_width, channels = width.to(tl.int64), out_width.to(tl.int64), channels.to(tl.int64)
    number = (outer * m + tl.arange(0, m))[:, None]
    channel = (inner * n + tl.arange(0, n))[None, :]
    column, line = number % columns, number // columns
    sample, line = line // lines, line % lines
    there = (sample < batch) & (channel < channels)
    source = x + sample.to(tl.int64) * x_stride + channel
    target = out + sample.to(tl.int64) * out_stride + channel
    values = ()
    for p in tl.static_range(rows):
        for q in tl.static_range(up):
            row = line * (rows * down // up)
            value = _filtered(
                *(source, row, column * down, there, height, width, channels, taps),
                *(length, up, down, before, flip, p, q),
            )
            values = _appended(values, value)
    for p in tl.static_range(rows):
        for q in tl.static_range(up):
            i, j = line * rows + p, column * up + q
            value = values[p * up + q].to(out.dtype.element_ty)
            tl.store(target + (i * out_width + j) * channels, value, there & (i < out_height) & (j < out_width))


def resample(x: Tensor, taps: Tensor, up: int, down: int, before: int, size: Sequence[int], flip: bool) -> Tensor:
    """`fastscore.reference.resample.resample_to`, its arguments checked."""
    batch, channels, height, width = x.shape
    layout = layout_of(x) or Layout(channels * height * width, 1)
    last = layout.channels > 1
    out = x.new_empty((batch, *size, channels)).movedim(-1, 1) if last else x.new_empty((batch, channels, *size))
    if x.numel() == 0 or out.numel() == 0:
        return out.zero_()
    source = operand(x, layout)
    rows = (1 if down == 2 else 2) if last else 4 if up == down else 2
    lines = triton.cdiv(size[0], rows)
    options: dict[str, Any] = {
        "length": taps.shape[0],
        "up": up,
        "down": down,
        "before": before,
        "flip": flip,
        "rows": rows,
    }
    sizes = (channels, height, width, *size, lines)
    wide = max(x.numel(), out.numel()) >= 2**30
    if last:
        columns = triton.cdiv(size[1], up)
        n = min(triton.next_power_of_2(channels), 128)
        m, tiles = (512 if x.element_size() > 2 else 1024) // n, triton.cdiv(channels, n)
        programs = triton.cdiv(batch * lines * columns, m) * tiles
        arguments = (out, out.stride(0), *source, taps.contiguous(), batch, *sizes, columns, tiles)
        launch(
            *(resample_channels_last_kernel, programs, x.device, *arguments),
            **options,
            wide=wide,
            m=m,
            n=n,
            num_warps=warps_of(128),
        )
    else:
        cells = triton.cdiv(size[1], 4 * up)
        n = min(triton.next_power_of_2(cells), 32)
        m, tiles = 128 // n, triton.cdiv(cells, n)
        programs = triton.cdiv(batch * channels * lines, m) * tiles
        arguments = (out, out.stride(0), *source, taps.contiguous(), batch * channels, *sizes, tiles)
        launch(
            *(resample_contiguous_kernel, programs, x.device, *arguments),
            **options,
            x_words=width % 4 == 0 and source.stride % 4 == 0,
            out_words=size[1] % 4 == 0 and out.stride(0) % 4 == 0,
            wide=wide,
            m=m,
            n=n,
            num_warps=warps_of(128),
        )
    return out

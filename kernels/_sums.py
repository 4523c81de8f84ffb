"""Sums over samples in two stages: a number for every tile of a sample, then these in an order of their own."""

from __future__ import annotations

import triton
import triton.language as tl

_AT_ONCE = 1024  # numbers that a program adds up side by side


def extent(tiles: int) -> tuple[int, int]:
    """(lines, columns) of `row_sums`. They depend on the tiles of a sample alone, so that its sum does, too."""
    columns = triton.next_power_of_2(min(tiles, _AT_ONCE))
    return _AT_ONCE // columns, columns


@triton.jit
def row_sums(numbers, first, batch, tiles, lines: tl.constexpr, columns: tl.constexpr):
    """Sums of the rows first ... first + lines - 1 of numbers (batch, tiles): (lines,), float64, 0 past the last."""
    line = (first + tl.arange(0, lines)).to(tl.int64)
    column = tl.arange(0, columns)
    start = numbers + line[:, None] * tiles
    total = tl.zeros((lines, columns), tl.float64)
    for begin in range(0, tiles, columns):
        there = (line < batch)[:, None] & (begin + column < tiles)[None, :]
        total += tl.load(start + (begin + column)[None, :], there, 0.0).to(tl.float64)
    return tl.sum(total, 1)

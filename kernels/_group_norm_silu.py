"""What the kernels of group_norm_silu share: which elements a program holds, and sums over groups of channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import warps_of
from ._states import Layout, Operand, layout_of, operand

ONE_PASS_THREADS = 1024  # the most there are: what they hold in registers is read once
SPLIT_THREADS = 256  # of a program of a group that is read twice
SMALL_THREADS = 64  # a program takes several groups rather than to have fewer
REGISTERS = 64  # of a thread of an NVIDIA GPU: they keep an SM half full
WORDS = 16  # of them that hold tensor elements
LINE, SECTOR = 64, 32  # bytes beside each other that a program reads, at best and at least
CHUNKS = 256  # the most parts that a group is cut into, and 1024 in all the groups of a program


@dataclass(frozen=True)
class Tile:
    """The elements of a sample that a program holds: groups x channels of each x pixels.

    A constant of the compiler, with all that it needs to know of the sizes.
    """

    groups: int
    channels: int  # of a group: all of them, or a power of two of the channels of one group
    pixels: int
    last: bool  # channels are fastest in memory
    sample_groups: int
    group_channels: int
    pixel_unit: int  # the number of pixels is passed in these units, so that the compiler knows a divisor
    stride_unit: int  # and strides of samples in these

    @property
    def rows(self) -> int:
        """Channels of a tile, those beside each other in a sample; a power of two, and the last ones may be idle."""
        return triton.next_power_of_2(self.groups * self.channels)

    @property
    def blocks(self) -> int:
        """Tiles beside each other that hold all groups."""
        return -(-self.sample_groups // self.groups)

    @property
    def subs(self) -> int:
        """Tiles that hold all channels of a group."""
        return -(-self.group_channels // self.channels)

    @property
    def sample_channels(self) -> int:
        return self.sample_groups * self.group_channels


class Plan(NamedTuple):
    """How a group is shared out. It depends on the sizes of a sample alone: so a sample has its bits in any batch."""

    groups: int
    channels: int
    pixels: int
    steps: int  # tiles that a program takes one after the other: pixels of the same channels
    ranges: int  # programs to the pixels of a channel
    chunks: int  # programs to a group
    width: int  # how many of them are combined at once: a power of two
    threads: int

    @property
    def one_pass(self) -> bool:
        """Whether a tile is whole groups, so that nothing is read twice."""
        return self.chunks == self.steps == 1


@cache
def plan(sample_groups: int, group_channels: int, pixels: int, last: bool, size: int, held: int, threads: int) -> Plan:
    """Cut the groups of a sample into tiles.

    Args:
        sample_groups, group_channels, pixels: groups of a sample, channels of a group, pixels.
        last: whether channels are fastest in memory.
        size: bytes of an element in memory.
        held: elements that a thread has registers for.
        threads: the most of a program.
    """
    all_groups, all_pixels = map(triton.next_power_of_2, (sample_groups, pixels))

    def elements(groups: int, channels: int = group_channels, rows: int = all_pixels) -> int:
        return triton.next_power_of_2(groups * channels) * rows

    line = max(1, min(LINE // size // triton.next_power_of_2(group_channels), all_groups)) if last else 1
    groups = line
    while groups > 1 and elements(groups) > held * ONE_PASS_THREADS:
        groups //= 2
    wide_enough = not last or groups * group_channels * size >= SECTOR or groups == all_groups
    if wide_enough and elements(groups) <= held * ONE_PASS_THREADS:
        while groups < all_groups and elements(groups) < held * SMALL_THREADS:
            groups *= 2
        return Plan(groups, group_channels, all_pixels, 1, 1, 1, 1, _threads(elements(groups), held, threads))
    tile = held * SPLIT_THREADS
    if last:
        groups = line
        channels = group_channels if group_channels <= tile // 4 else tile // 4
        rows = min(all_pixels, max(tile // elements(groups, channels, 1), 1))
    else:
        groups = 1
        channels, rows = _block(group_channels, pixels, tile)
        channels = min(channels, group_channels)
    subs, tiles = -(-group_channels // channels), -(-pixels // rows)
    steps = -(-tiles * subs // min(CHUNKS, 4 * CHUNKS // groups))
    ranges = -(-tiles // steps)
    width = min(triton.next_power_of_2(subs * ranges), CHUNKS)
    return Plan(
        groups,
        channels,
        rows,
        steps,
        ranges,
        subs * ranges,
        width,
        _threads(elements(groups, channels, rows), held, threads),
    )


def _block(channels: int, pixels: int, tile: int) -> tuple[int, int]:
    """Channels x pixels of a tile of a contiguous group: the longest rows of those that leave few lanes idle."""

    def padded(width: int) -> int:
        height = min(tile // width, triton.next_power_of_2(channels))
        return -(-pixels // width) * width * -(-channels // height) * height

    longest = min(tile, triton.next_power_of_2(pixels))
    widths = [longest]
    while widths[-1] > 256:
        widths.append(widths[-1] // 2)
    best = min(padded(width) for width in widths)
    chosen = next(width for width in widths if 8 * padded(width) <= 9 * best)
    return min(tile // chosen, triton.next_power_of_2(channels)), chosen


def _threads(elements: int, held: int, threads: int) -> int:
    return max(min(elements // held, threads), 128)


class Call:
    """The tensors of one call as the kernels take them.

    Args:
        x: (N, C, *spatial), not empty.
        others: tensors of the shape of x that are read beside it.
        num_groups: G.
        arrays: how many tiles of them a program holds at once.
    """

    def __init__(self, x: Tensor, others: list[Tensor], num_groups: int, arrays: int):
        self.x = x
        self.batch, channels = x.shape[:2]
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.layout = layout_of(x) or Layout(math.prod(x.shape[1:]), 1)
        self.pixels = max(math.prod(x.shape[2:]), 1)
        last = self.layout.channels > 1 or self.pixels == 1
        held = max(WORDS // (arrays * (self.dtype.itemsize // 4)), 1)
        # 1024 threads have 64 registers each, which are too few for wide numbers of two arrays.
        threads = 512 if arrays > 1 and self.dtype == torch.float64 else 1024
        self.plan = plan(num_groups, channels // num_groups, self.pixels, last, x.element_size(), held, threads)
        self._operands = [operand(t, self.layout) for t in (x, *others)]
        self.tile = Tile(
            *self.plan[:3],
            last=last,
            sample_groups=num_groups,
            group_channels=channels // num_groups,
            pixel_unit=1 if last else math.gcd(self.pixels, 16),
            stride_unit=math.gcd(16, channels if last else self.pixels, *(o.stride for o in self._operands)),
        )

    @property
    def operands(self) -> list[Tensor | int]:
        """x, its stride in units of the tile, and so on."""
        return [part for o in self._operands for part in Operand(o.tensor, o.stride // self.tile.stride_unit)]

    @property
    def options(self) -> dict[str, Any]:
        """Of a launch of a kernel that holds tiles."""
        limited = self.dtype == torch.float32 and not torch.version.hip
        return self.unlimited | ({"maxnreg": REGISTERS} if limited else {})

    @property
    def unlimited(self) -> dict[str, Any]:
        """The same with as many registers as the kernel takes."""
        return {"tile": self.tile, "num_warps": warps_of(self.plan.threads)}

    @property
    def units(self) -> int:
        return self.pixels // self.tile.pixel_unit

    @property
    def shares(self) -> tuple[int, int, int]:
        """What tells a program of a split group its share."""
        return self.units, self.plan.steps, self.plan.ranges

    @property
    def real(self) -> tl.dtype:
        """The op dtype."""
        return tl.float64 if self.dtype == torch.float64 else tl.float32

    @property
    def programs(self) -> int:
        """One for each chunk of each group, or several groups of a sample."""
        return self.batch * self.tile.blocks * self.plan.chunks

    def result(self) -> Tensor:
        """Uninitialized, in the memory format of x."""
        x = self.x
        if self.layout.channels > 1:
            return x.new_empty((self.batch, *x.shape[2:], x.shape[1])).movedim(-1, 1)
        return x.new_empty(x.shape)

    def scratch(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=self.dtype)


def rows_of(parameters: tuple[Tensor | None, ...]) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
    """Parameters (C,) or (N, C), dense, and the distances of their rows: 0 where all samples share one."""
    dense = tuple(None if p is None else p.contiguous() for p in parameters)
    return dense, tuple(p.shape[1] if p is not None and p.ndim == 2 else 0 for p in dense)


@triton.jit
def chunk_of(program, ranges, tile: tl.constexpr):
    """The sample, the block of groups, the part of their channels and the range of pixels of a program.

    Programs one after the other read what lies one after the other in memory.
    """
    if tile.last:
        block = program % tile.blocks
        program = program // tile.blocks
        chunk = program % (tile.subs * ranges)
        program = program // (tile.subs * ranges)
    else:
        chunk = program % (tile.subs * ranges)
        program = program // (tile.subs * ranges)
        block = program % tile.blocks
        program = program // tile.blocks
    return program.to(tl.int64), block, chunk // ranges, chunk % ranges


@triton.jit
def pixels_of(part, steps, pixels, tile: tl.constexpr):
    """The first pixel of a range and the one after its last, in 64 bits."""
    begin = part.to(tl.int64) * (tile.pixels * steps)
    return begin, tl.minimum(begin + tile.pixels * steps, pixels)


@triton.jit
def channels_of(block, sub, tile: tl.constexpr):
    """The channels of a tile: the first one, the others (rows,) from there, and which of them there are."""
    row = tl.arange(0, tile.rows)
    first = block.to(tl.int64) * (tile.groups * tile.group_channels)
    if tile.subs == 1:
        known = (row < tile.groups * tile.channels) & (first + row < tile.sample_channels)
    else:
        first += sub * tile.channels
        known = sub * tile.channels + row < tile.group_channels
    return first, row, known


@triton.jit
def place(block, sub, pixel, pixels, tile: tl.constexpr):
    """Where a tile lies in its sample: its first element, the others (rows, tile.pixels) from there, which there are.

    Only the first element needs 64 bits.
    """
    first, row, known = channels_of(block, sub, tile)
    column = tl.arange(0, tile.pixels)
    left = tl.minimum(pixels - pixel, tile.pixels).to(tl.int32)
    there = known[:, None] & (column < left)[None, :]
    if tile.last:
        start = first + pixel * tl.full((), tile.sample_channels, tl.int64)
        if tile.pixels * tile.sample_channels >= 2**31:
            column = column.to(tl.int64)
        offset = row[:, None] + column[None, :] * tile.sample_channels
    else:
        start = first * pixels + pixel
        offset = row[:, None] * pixels + column[None, :]
    return start, offset, there


@triton.jit
def per_channel(parameter, stride, sample, channel, known, otherwise: tl.constexpr, dtype: tl.constexpr):
    """A parameter at the channels (rows,) of a sample, `otherwise` where it is absent."""
    if parameter is None:
        value = tl.full(channel.shape, otherwise, dtype)
    else:
        value = tl.load(parameter + sample * stride + channel, known, 0).to(dtype)
    return value


@triton.jit
def affine(parameters, strides, sample, channel, known, dtype: tl.constexpr):
    """alpha and beta (rows,) of v = alpha xhat + beta."""
    gain = 1 + per_channel(parameters[3], strides[3], sample, channel, known, 0, dtype)
    alpha = gain * per_channel(parameters[0], strides[0], sample, channel, known, 1, dtype)
    beta = gain * per_channel(parameters[1], strides[1], sample, channel, known, 0, dtype)
    return alpha, beta + per_channel(parameters[4], strides[4], sample, channel, known, 0, dtype)


@triton.jit
def load_sum(x, offset, there, add, add_stride, sample, channel, known, dtype: tl.constexpr, eviction: tl.constexpr):
    """x + add of a tile; 0 where there is nothing, even where add is."""
    z = tl.load(x + offset, there, 0, eviction_policy=eviction).to(dtype)
    if add is not None:
        z += per_channel(add, add_stride, sample, channel, known, 0, dtype)[:, None]
        z = tl.where(there, z, 0)
    return z


@triton.jit
def groups_of(block, tile: tl.constexpr):
    """The groups (tile.groups,) of a tile and which there are."""
    group = block * tile.groups + tl.arange(0, tile.groups)
    return group, group < tile.sample_groups


@triton.jit
def members(tile: tl.constexpr):
    """Which channels belong to which group: (tile.groups, rows)."""
    group = tl.arange(0, tile.groups)
    return tl.arange(0, tile.rows)[None, :] // tile.channels == group[:, None]


@triton.jit
def over_channels(values, tile: tl.constexpr):
    """(rows,), 0 where there is nothing, summed over the channels of each group: (tile.groups,).

    The sum of a single group goes through a scalar: as a tensor of one element it has a layout, which the compiler may
    give to large tensors around it, whose elements are then all in one thread.
    """
    if tile.groups == 1:
        total = tl.full((1,), 0, values.dtype) + tl.sum(values)
    elif tile.rows == tile.groups * tile.channels:
        total = tl.sum(tl.reshape(values, (tile.groups, tile.channels)), 1)
    else:
        total = tl.sum(tl.where(members(tile), values[None, :], 0), 1)
    return total


@triton.jit
def over_group(values, tile: tl.constexpr):
    """(rows, tile.pixels), 0 where there is nothing, summed over each group: (tile.groups,)."""
    if tile.groups == 1:
        total = tl.full((1,), 0, values.dtype) + tl.sum(values)
    else:
        total = over_channels(tl.sum(values, 1), tile)
    return total


@triton.jit
def over_parts(values, tile: tl.constexpr):
    """(tile.groups, parts) summed over the parts of each group: (tile.groups,)."""
    if tile.groups == 1:
        total = tl.full((1,), 0, values.dtype) + tl.sum(values)
    else:
        total = tl.sum(values, 1)
    return total


@triton.jit
def to_rows(values, tile: tl.constexpr):
    """(tile.groups,) repeated for the channels of each group: (rows,), or (1,) where there is one group."""
    if tile.groups > 1:
        if tile.rows == tile.groups * tile.channels:
            values = tl.reshape(tl.broadcast_to(values[:, None], (tile.groups, tile.channels)), (tile.rows,))
        else:
            values = tl.sum(tl.where(members(tile), values[:, None], 0), 0)
    return values


@triton.jit
def normalizer(mean, rstd, parameters, strides, sample, block, channel, known, tile: tl.constexpr):
    """What takes x to xhat = scale (x - center) and to v = slope (x - center) + beta: few numbers for each channel.

    Returns:
        center and scale, (rows,) or (1,); alpha, slope = alpha scale, and beta, (rows,).
    """
    dtype: tl.constexpr = mean.dtype.element_ty
    group, real = groups_of(block, tile)
    group += sample * tile.sample_groups
    center = to_rows(tl.load(mean + group, real, 0), tile)
    scale = to_rows(tl.load(rstd + group, real, 0), tile)
    if parameters[2] is not None:
        center -= per_channel(parameters[2], strides[2], sample, channel, known, 0, dtype)
    alpha, beta = affine(parameters, strides, sample, channel, known, dtype)
    return center, scale, alpha, alpha * scale, beta


@triton.jit
def divide(a, b):
    """a / b, correctly rounded; b is float."""
    if b.dtype == tl.float32:
        quotient = tl.div_rn(a, b)
    else:
        quotient = a / b
    return quotient


@triton.jit
def sigmoid(v):
    """1 / (1 + exp(-v))."""
    return 1 / (1 + tl.exp(-v))


@triton.jit
def silu_slope(v):
    """d silu(v) / dv."""
    s = sigmoid(v)
    return s * (1 + v * (1 - s))

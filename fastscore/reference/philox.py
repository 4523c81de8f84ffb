"""Philox 4x32-10 in plain PyTorch: noise as a function of (seed, draw, sample, element).

This file is the specification of all noise in fastscore; the kernels agree with it bit for bit in their integers and
within 4 units in the last place in their normals. The generator is that of Salmon, Moraes, Dror and Shaw, "Parallel
random numbers: as easy as 1, 2, 3" (SC 2011), the normals are those of Box and Muller (1958).

    key      (seed mod 2^32, seed >> 32)
    counter  (block, draw, sample mod 2^32, sample >> 32)

`draw` says which noise of a run it is (0 is the prior), `sample` is the index of the sample, and `block` counts the
elements of one sample in logical (row-major) order: 4 normals or 128 signs to a block. Batch size, memory format,
device and number of threads appear nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
NORMALS_PER_BLOCK = 4
SIGNS_PER_BLOCK = 128
_MASK32 = 0xFFFFFFFF


def philox_words(seed: int | Tensor, draw: int | Tensor, samples: int | Tensor, blocks: int | Tensor) -> Tensor:
    """The four random words of each block.

    Args:
        seed: key, any int64 (two's complement).
        draw: number of the draw in [0, 2^32); only its low 32 bits count.
        samples: index of the sample, any int64.
        blocks: index of the block in [0, 2^32); only its low 32 bits count.

    All four broadcast against each other; integers and int64 tensors mix freely.

    Returns:
        int64 tensor of the broadcast shape with a last dimension of 4 added: words in [0, 2^32).
    """
    device = next((v.device for v in (blocks, samples, draw, seed) if isinstance(v, Tensor)), None)
    as_tensors = [torch.as_tensor(v, dtype=torch.int64, device=device) for v in (seed, draw, samples, blocks)]
    s, d, i, b = torch.broadcast_tensors(*as_tensors)
    key = [s & _MASK32, (s >> 32) & _MASK32]
    c0, c1, c2, c3 = b & _MASK32, d & _MASK32, i & _MASK32, (i >> 32) & _MASK32
    for _ in range(ROUNDS):
        high0, low0 = _multiply_32x32(c0, MULTIPLIERS[0])
        high1, low1 = _multiply_32x32(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
        key = [(k + weyl) & _MASK32 for k, weyl in zip(key, WEYL, strict=True)]
    return torch.stack((c0, c1, c2, c3), dim=-1)


def philox_normal(
    shape: Sequence[int],
    rng: Tensor,
    samples: Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals for a batch: row b holds the noise of sample `samples[b]` at draw `rng[1]` of seed `rng[0]`.

    With words r0..r3 of a block, its four elements are R(r0) cos A(r1), R(r0) sin A(r1), R(r2) cos A(r3) and
    R(r2) sin A(r3), where R(r) = sqrt(-2 ln u) with u = float32(r) 2^-32 + 2^-33 in float32, which lies in [2^-33, 1],
    and A(r) = 2 pi r / 2^32 exactly. All is evaluated in float64 and rounded once.

    Args:
        shape: (B, ...), the shape of the result.
        rng: int64 [2], (seed, draw).
        samples: int64 [B], the index of the sample in each row.
        dtype: floating-point type of the result.
        device: device of the result; that of `samples` if None.

    Returns:
        Tensor of `shape`, contiguous.
    """
    words = _rows_of_words(shape, rng, samples, device, NORMALS_PER_BLOCK)
    radius = _radius(words[..., 0::2])
    cosine, sine = _unit_vector(words[..., 1::2])
    normals = torch.stack((radius * cosine, radius * sine), dim=-1).flatten(1)
    return normals[:, : math.prod(shape[1:])].to(dtype).reshape(tuple(shape))


def philox_rademacher(
    shape: Sequence[int],
    rng: Tensor,
    samples: Tensor,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Random signs for a batch: bit `e % 32` of word `(e // 32) % 4` of block `e // 128` is 1 for +1 and 0 for -1.

    Arguments and result as in `philox_normal`.
    """
    words = _rows_of_words(shape, rng, samples, device, SIGNS_PER_BLOCK)
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    return (2 * bits.flatten(1)[:, : math.prod(shape[1:])] - 1).to(dtype).reshape(tuple(shape))


def _rows_of_words(
    shape: Sequence[int], rng: Tensor, samples: Tensor, device: torch.device | str | None, per_block: int
) -> Tensor:
    """Words (B, blocks, 4) that cover the elements of each row."""
    device = samples.device if device is None else torch.device(device)
    rng, samples = rng.to(device), samples.to(device)
    blocks = torch.arange(-(-math.prod(shape[1:]) // per_block), device=device)
    return philox_words(rng[0], rng[1], samples.unsqueeze(1), blocks)


def _multiply_32x32(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low word of a * b; in two steps of 48 bits, because a signed product of 64 may not overflow in C++."""
    low = (a & 0xFFFF) * b
    rest = (a >> 16) * b + (low >> 16)
    return rest >> 16, ((rest & 0xFFFF) << 16) | (low & 0xFFFF)


def _radius(words: Tensor) -> Tensor:
    u = words.to(torch.float32) * 2.0**-32 + 2.0**-33
    return torch.sqrt(-2.0 * torch.log(u.to(torch.float64)))


def _unit_vector(words: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi words / 2^32, reduced to the nearest multiple of pi/2 in integers, so without error."""
    quadrant = ((words + 2**29) & _MASK32) >> 30
    remainder = (words - (quadrant << 30) + 2**31) & _MASK32  # word 2^32 - 1 belongs to quadrant 0, remainder -1
    angle = (remainder - 2**31).to(torch.float64) * (2.0 * math.pi / 2.0**32)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    odd = (quadrant & 1).bool()
    cosine, sine = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    cosine = torch.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return cosine, torch.where(quadrant >= 2, -sine, sine)

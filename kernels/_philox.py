"""The noise of `fastscore.reference.philox` in registers: Philox 4x32-10 and the normals of Box and Muller."""

import math

import triton
import triton.language as tl

_RADIANS = tl.constexpr(2.0 * math.pi / 2.0**32)


@triton.jit
def philox(seed, draw, sample, block):
    """The four words of a block. seed, draw, sample: int64 scalars or tensors; block: any integers, low 32 bits."""
    key0 = seed.to(tl.uint32)
    key1 = (seed >> 32).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = c0 * 0 + draw.to(tl.uint32)
    c2 = c0 * 0 + sample.to(tl.uint32)
    c3 = c0 * 0 + (sample >> 32).to(tl.uint32)
    first = tl.full((), 0xD2511F53, tl.uint32)
    second = tl.full((), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, first), c0 * first
        high1, low1 = tl.umulhi(c2, second), c2 * second
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += tl.full((), 0x9E3779B9, tl.uint32)
        key1 += tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _squared_radius(word, dtype: tl.constexpr):
    """-2 ln u, u = float32(word) 2^-32 + 2^-33."""
    u = word.to(tl.float32) * 2.0**-32 + 2.0**-33
    return -2.0 * tl.log(u.to(dtype))


@triton.jit
def _radius(word, dtype: tl.constexpr):
    square = _squared_radius(word, dtype)
    if dtype == tl.float64:
        radius = tl.sqrt(square)
    else:
        radius = tl.sqrt_rn(square)
    return radius


@triton.jit
def _turn(word, dtype: tl.constexpr):
    """Cosine and sine of 2 pi word / 2^32: the nearest quarter turn, and an exact remainder of at most an eighth."""
    quarter = (word + 0x20000000) >> 30
    rest = (word - (quarter << 30)).to(tl.int32, bitcast=True)
    if dtype == tl.float64:
        x = rest.to(tl.float64) * _RADIANS
        z = x * x
        # Taylor's: on an eighth of a turn, what is left out is below 3e-18
        c = z * 4.779477332387385e-14 + -1.1470745597729725e-11
        c = c * z + 2.08767569878681e-09
        c = c * z + -2.755731922398589e-07
        c = c * z + 2.48015873015873e-05
        c = c * z + -0.001388888888888889
        c = c * z + 0.041666666666666664
        c = c * z + -0.5
        c = c * z + 1.0
        s = z * 2.8114572543455206e-15 + -7.647163731819816e-13
        s = s * z + 1.6059043836821613e-10
        s = s * z + -2.505210838544172e-08
        s = s * z + 2.7557319223985893e-06
        s = s * z + -0.0001984126984126984
        s = s * z + 0.008333333333333333
        s = s * z + -0.16666666666666666
        s = s * z + 1.0
        s = s * x
    else:  # minimax polynomials
        x = rest.to(tl.float32) * _RADIANS
        z = x * x
        c = (z * z) * (z * (z * 2.443315711809948e-5 - 1.388731625493765e-3) + 4.166664568298827e-2) + (z * -0.5 + 1.0)
        s = (x * z) * (z * (z * -1.9515295891e-4 + 8.3321608736e-3) - 1.6666654611e-1) + x
    odd = (quarter & 1) == 1
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((quarter + 1) & 2) != 0, -cosine, cosine), tl.where((quarter & 2) != 0, -sine, sine)


@triton.jit
def normal4(seed, draw, sample, block, dtype: tl.constexpr):
    """The normals 4 block ... 4 block + 3 of a sample, for blocks (n,): (n, 4), float32 or float64."""
    r0, r1, r2, r3 = philox(seed, draw, sample, block)
    first, second = _radius(r0, dtype), _radius(r2, dtype)
    c1, s1 = _turn(r1, dtype)
    c3, s3 = _turn(r3, dtype)
    # join puts its arguments side by side in a new last dimension
    pairs = tl.join(tl.join(first * c1, second * c3), tl.join(first * s1, second * s3))
    return tl.reshape(pairs, (block.shape[0], 4))


@triton.jit
def squared_radii(seed, draw, sample, block, dtype: tl.constexpr):
    """The sum of the squares of the four normals of every block (n,): without an angle, cos^2 + sin^2 being 1."""
    r0, _, r2, _ = philox(seed, draw, sample, block)
    return _squared_radius(r0, dtype) + _squared_radius(r2, dtype)


@triton.jit
def signs128(seed, draw, sample, block):
    """The signs 128 block ... 128 block + 127 of a sample, for blocks (n,): (n, 4, 32), float32, 1 or -1."""
    r0, r1, r2, r3 = philox(seed, draw, sample, block)
    words = tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), (block.shape[0], 4))
    bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return bits.to(tl.float32) * 2 - 1

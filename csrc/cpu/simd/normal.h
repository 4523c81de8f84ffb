// Standard normals and random signs, as fastscore/reference/philox.py specifies them: words of Philox 4x32-10 (Salmon
// et al., 2011), turned into normals by the formula of Box and Muller (1958).
//
//   const PhiloxStream stream(seed, draw, sample);      all the noise of one sample at one draw
//   stream.fill_normals(first, count, out);             elements first ... first + count - 1, from anywhere, to
//   anywhere
//
// Philox keeps one 32-bit word in each 64-bit lane, where a multiplication leaves both halves of its product: the upper
// halves are garbage to everybody, because the next multiplication reads lower halves only. Neighboring lanes hold
// blocks that lie half a vector apart, so that the two unpack instructions at the end, which see pairs of lanes, put
// the elements out in their order.
#pragma once

#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {

namespace philox {

inline constexpr std::uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
inline constexpr std::uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;
inline constexpr int rounds = 10;
inline constexpr int units = 2;  // vectors of blocks computed side by side, to fill the latency of the multiplications

// The block that 64-bit lane `lane` holds, relative to the first.
FASTSCORE_INLINE int block_of_lane(int lane) {
  return lane / 2 + (lane % 2) * (lanes64 / 2);
}

// Hides a constant from the compiler: GCC would build it anew at each use, on the busiest execution port.
template <class V>
FASTSCORE_INLINE V opaque(V value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

// Product of the lower words of each 64-bit lane.
FASTSCORE_INLINE vu64 multiply(vu64 a, vu64 b) {
#if defined(__AVX512F__)
  return bit_cast<vu64>(_mm512_mul_epu32(bit_cast<__m512i>(a), bit_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return bit_cast<vu64>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(b)));
#elif defined(__x86_64__)
  return bit_cast<vu64>(_mm_mul_epu32(bit_cast<__m128i>(a), bit_cast<__m128i>(b)));
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Upper word of each 64-bit lane, moved down; a shuffle, because shifts compete with the multiplications for ports.
FASTSCORE_INLINE vu64 high(vu64 a) {
#if defined(__AVX512F__)
  return bit_cast<vu64>(_mm512_shuffle_epi32(bit_cast<__m512i>(a), _MM_PERM_DDBB));
#elif defined(__AVX2__)
  return bit_cast<vu64>(_mm256_shuffle_epi32(bit_cast<__m256i>(a), 0xF5));
#elif defined(__x86_64__)
  return bit_cast<vu64>(_mm_shuffle_epi32(bit_cast<__m128i>(a), 0xF5));
#else
  return a >> 32;
#endif
}

// The lower words of a and b side by side: a0 b0 a2 b2 ... in 32-bit lanes.
FASTSCORE_INLINE vu32 pair(vu64 a, vu64 b) {
#if defined(__AVX512F__)
  const __m512i shifted = _mm512_slli_epi64(bit_cast<__m512i>(b), 32);
  return bit_cast<vu32>(_mm512_mask_blend_epi32(0xAAAA, bit_cast<__m512i>(a), shifted));
#elif defined(__AVX2__)
  return bit_cast<vu32>(_mm256_blend_epi32(bit_cast<__m256i>(a), _mm256_slli_epi64(bit_cast<__m256i>(b), 32), 0xAA));
#else
  return bit_cast<vu32>((a & 0xFFFFFFFFu) | (b << 32));
#endif
}

// a0 b0 a1 b1 of every four lanes, and a2 b2 a3 b3 of every four lanes.
FASTSCORE_INLINE void interleave(vf32 a, vf32 b, vf32& low, vf32& high) {
#if defined(__AVX512F__)
  low = _mm512_unpacklo_ps(a, b);
  high = _mm512_unpackhi_ps(a, b);
#elif defined(__AVX2__)
  low = _mm256_unpacklo_ps(a, b);
  high = _mm256_unpackhi_ps(a, b);
#elif defined(__x86_64__)
  low = _mm_unpacklo_ps(a, b);
  high = _mm_unpackhi_ps(a, b);
#else
  low = vf32{a[0], b[0], a[1], b[1]};
  high = vf32{a[2], b[2], a[3], b[3]};
#endif
}

// Words as float, rounded once, times 2^-32, plus 2^-33: in (0, 1].
FASTSCORE_INLINE vf32 to_unit(vu32 words) {
#if defined(__AVX512F__)
  const vf32 x = _mm512_cvtepu32_ps(bit_cast<__m512i>(words));
#else  // no unsigned conversion there; both halves and 2^16 times the upper one are exact, so the sum rounds once
  const vf32 upper = __builtin_convertvector(bit_cast<vi32>(words >> 16), vf32);
  const vf32 x = fma(upper, splat(0x1p16f), __builtin_convertvector(bit_cast<vi32>(words & splat(0xFFFFu)), vf32));
#endif
  return fma(x, splat(0x1p-32f), splat(0x1p-33f));
}

// Exchanges a and b where bit 30 of `turns` is set.
FASTSCORE_INLINE void exchange_on_bit30(vu32 turns, vf32& a, vf32& b) {
#if defined(__AVX512F__)
  const __mmask16 odd = _mm512_test_epi32_mask(bit_cast<__m512i>(turns), _mm512_set1_epi32(1 << 30));
  const vf32 old = a;
  a = _mm512_mask_blend_ps(odd, a, b);
  b = _mm512_mask_blend_ps(odd, b, old);
#else
  const vi32 odd = bit_cast<vi32>(turns << 1) >> 31;
  const vi32 difference = (bit_cast<vi32>(a) ^ bit_cast<vi32>(b)) & odd;
  a = bit_cast<vf32>(bit_cast<vi32>(a) ^ difference);
  b = bit_cast<vf32>(bit_cast<vi32>(b) ^ difference);
#endif
}

// A polynomial; coefficients from the highest power down.
template <class V, class... Rest>
FASTSCORE_INLINE V horner(V x, V sum, Rest... lower) {
  ((sum = fma(sum, x, splat(lower))), ...);
  return sum;
}

// -2 ln u for u in (0, 1]: u = 2^e (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2), and ln 2 in two parts.
FASTSCORE_INLINE vf32 minus_two_log(vf32 u) {
  const vi32 bits = bit_cast<vi32>(u);
  const vi32 exponent = (bits - splat(std::int32_t{0x3F3504F3})) >> 23;
  const vf32 f = bit_cast<vf32>(bits - (exponent << 23)) - splat(1.0f);
  const vf32 e = __builtin_convertvector(exponent, vf32);
  const vf32 square = f * f;
  // Minimax for the relative error of the logarithm: 6e-9. Summed as a tree, because this is the longest dependency.
  const vf32 q01 = fma(f, splat(0.500016391f), splat(-0.666666627f));
  const vf32 q23 = fma(f, splat(0.332468182f), splat(-0.400024831f));
  const vf32 q45 = fma(f, splat(0.263192207f), splat(-0.2840316f));
  const vf32 q67 = fma(f, splat(0.152728781f), splat(-0.255244344f));
  const vf32 q = fma(square * square, fma(square, q67, q45), fma(square, q23, q01));
  const vf32 tail = fma(square, f * q, fma(e, splat(4.24388807e-4f), square));
  return fma(e, splat(-1.38671875f), fma(f, splat(-2.0f), tail));
}

// The same in double, from ln(1 + f) = f - (f^2/2 - s (f^2/2 + r)) with s = f / (2 + f) and 2 artanh(s) = 2 s + s r.
FASTSCORE_INLINE vf64 minus_two_log(vf64 u) {
  const vi64 bits = bit_cast<vi64>(u);
  const vi64 exponent = (bits - splat(std::int64_t{0x3FE6A09E667F3BCD})) >> 52;
  const vf64 f = bit_cast<vf64>(bits - (exponent << 52)) - splat(1.0);
  const vf64 e = __builtin_convertvector(exponent, vf64);
  const vf64 s = f / (f + splat(2.0)), z = s * s, half_square = splat(0.5) * f * f;
  // 11 terms of the series leave 2e-18, because z < 0.0295.
  const vf64 r = z * horner(z, splat(2.0 / 23), 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9,
                            2.0 / 7, 2.0 / 5, 2.0 / 3);
  const vf64 tail = half_square - fma(s, half_square + r, e * splat(0x1.a39ef35793c76p-33));
  return splat(-2.0) * fma(e, splat(0x1.62e42feep-1), f - tail);
}

// Cosine and sine of t in [-1/8, 1/8] turns; minimax, within 4e-9 relative before rounding. The leading coefficient of
// the sine is 2 pi in two parts, because the sine of a small angle is nothing else.
FASTSCORE_INLINE void cosine_sine(vf32 t, vf32& cosine, vf32& sine) {
  const vf32 y = t * t;
  cosine = horner(y, splat(58.621059f), -85.4245224f, 64.9391479f, -19.7392082f, 1.0f);
  const vf32 p = horner(y, splat(-75.4273911f), 81.5934296f, -41.341671f);
#if defined(__x86_64__) && !defined(__FMA__)
  // The one product whose rounding would be felt is made exact: 2 pi = 201/32 + rest, t = its upper 12 bits + rest.
  const vf32 head = bit_cast<vf32>(bit_cast<vu32>(t) & splat(0xFFFFF000u));
  const vf32 rest = head * splat(1.93530718e-3f) + (t - head) * splat(6.28318531f);
  sine = head * splat(6.28125f) + (rest + t * (y * p));
#else
  sine = fma(t, splat(6.28318548f), t * fma(y, p, splat(-1.74845553e-7f)));
#endif
}

// Taylor series of the angle in radians, of which the first term left out is below 1e-18.
FASTSCORE_INLINE void cosine_sine(vf64 t, vf64& cosine, vf64& sine) {
  const vf64 x = t * splat(6.283185307179586476925), y = x * x;
  sine = fma(x,
             y * horner(y, splat(1.0 / 355687428096000), -1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
                        1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6),
             x);
  cosine = horner(y, splat(1.0 / 20922789888000), -1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320,
                  -1.0 / 720, 1.0 / 24, -0.5, 1.0);
}

}  // namespace philox

class PhiloxStream {
 public:
  static constexpr int group = 2 * lanes32;          // elements that the words of one vector of blocks make
  static constexpr int run = philox::units * group;  // elements of one call of `words`

  PhiloxStream(std::int64_t seed, std::int64_t draw, std::int64_t sample) {
    using namespace philox;
    const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
    const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
    std::uint32_t key[rounds][2] = {{low(seed), high(seed)}};
    for (int i = 1; i < rounds; ++i) {
      key[i][0] = key[i - 1][0] + weyl0;
      key[i][1] = key[i - 1][1] + weyl1;
    }
    // Only counter word 0, the block, varies within a sample: half of the first two rounds is the same for all blocks.
    const std::uint64_t product1 = std::uint64_t{multiplier1} * low(sample);
    const std::uint64_t product0 = std::uint64_t{multiplier0} * (high(product1) ^ low(draw) ^ key[0][0]);
    round1_c2_ = splat64(high(sample) ^ key[0][1]);
    round2_c0_ = splat64(low(product1) ^ key[1][0]);
    round2_c2_ = splat64(high(product0) ^ key[1][1]);
    round2_c3_ = splat64(low(product0));
    for (int i = 2; i < rounds; ++i) {
      key_[i - 2][0] = splat64(key[i][0]);
      key_[i - 2][1] = splat64(key[i][1]);
    }
    for (int lane = 0; lane < lanes64; ++lane) lane_blocks_[lane] = block_of_lane(lane);
  }

  // One word of each counter in each 64-bit lane; upper halves are garbage.
  struct Words {
    vu64 c0, c1, c2, c3;
  };

  // The words of units * lanes64 blocks, several vectors at once to keep the multipliers busy.
  [[gnu::always_inline]] void words(std::uint32_t first_block, Words (&w)[philox::units]) const {
    using namespace philox;
    const vu64 m0 = opaque(splat64(multiplier0)), m1 = opaque(splat64(multiplier1));
    for (int u = 0; u < units; ++u) {
      const vu64 product0 = multiply(lane_blocks_ + splat64(first_block + u * lanes64), m0);
      const vu64 product1 = multiply(high(product0) ^ round1_c2_, m1);
      w[u] = {high(product1) ^ round2_c0_, product1, product0 ^ round2_c2_, round2_c3_};
    }
#pragma GCC unroll 16
    for (int i = 0; i < rounds - 2; ++i) {
#pragma GCC unroll 4
      for (int u = 0; u < units; ++u) {
        const vu64 product0 = multiply(w[u].c0, m0), product1 = multiply(w[u].c2, m1);
        w[u] = {high(product1) ^ (w[u].c1 ^ key_[i][0]), product1, high(product0) ^ (w[u].c3 ^ key_[i][1]), product0};
      }
    }
  }

  // The words of run / 4 blocks, four to a block.
  void store_words(std::uint32_t first_block, std::uint32_t* out) const {
    Words w[philox::units];
    words(first_block, w);
    for (int u = 0; u < philox::units; ++u) {
      for (int lane = 0; lane < lanes64; ++lane) {
        std::uint32_t* to = out + 4 * (u * lanes64 + philox::block_of_lane(lane));
        to[0] = static_cast<std::uint32_t>(w[u].c0[lane]);
        to[1] = static_cast<std::uint32_t>(w[u].c1[lane]);
        to[2] = static_cast<std::uint32_t>(w[u].c2[lane]);
        to[3] = static_cast<std::uint32_t>(w[u].c3[lane]);
      }
    }
  }

  // T is float or double.
  template <class T>
  void fill_normals(std::int64_t first, std::int64_t count, T* out) const {
    vu32 radius[chunk_groups], angle[chunk_groups];
    T buffer[group];
    std::int64_t skip = first % 4;  // a group starts at a block: the first may be used from its second element on
    for (std::int64_t block = first / 4; count > 0; block += chunk_groups * group / 4) {
      const std::int64_t wanted = skip + count < chunk_groups * group ? skip + count : chunk_groups * group;
      pairs(static_cast<std::uint32_t>(block), wanted, radius, angle);
      for (int i = 0; i * group < wanted; ++i) {
        if (skip == 0 && count >= group) {
          box_muller(radius[i], angle[i], out);
          out += group, count -= group;
        } else {
          box_muller(radius[i], angle[i], buffer);
          const std::int64_t taken = group - skip < count ? group - skip : count;
          for (std::int64_t k = 0; k < taken; ++k) out[k] = buffer[skip + k];
          out += taken, count -= taken, skip = 0;
        }
      }
    }
  }

  // Sum of the squares of elements first ... first + count - 1 in float, where `first` is a multiple of 4. The squares
  // of a pair add up to that of its radius, so neither sines nor square roots are needed.
  double squared_norm(std::int64_t first, std::int64_t count) const {
    constexpr int chains = 4;
    vu32 radius[chunk_groups], angle[chunk_groups];
    vf32 sums[chains] = {};
    double rest = 0;
    for (std::int64_t block = first / 4; count > 0; block += chunk_groups * group / 4) {
      const int whole = static_cast<int>(count / group < chunk_groups ? count / group : chunk_groups);
      pairs(static_cast<std::uint32_t>(block), count < chunk_groups * group ? count : chunk_groups * group, radius,
            angle);
      int i = 0;
      for (; i + chains <= whole; i += chains)
        for (int k = 0; k < chains; ++k) sums[k] += squared_radius(radius[i + k]);
      for (; i < whole; ++i) sums[i % chains] += squared_radius(radius[i]);
      count -= whole * group;
      if (whole < chunk_groups && count > 0) {
        float last[group];
        box_muller(radius[whole], angle[whole], last);
        for (int k = 0; k < count; ++k) rest += double{last[k]} * last[k];
        count = 0;
      }
    }
    for (const vf32& chain : sums) rest += sum(chain);
    return rest;
  }

 private:
  static constexpr std::uint32_t eighth_turn = 1u << 29, quarter_turn = 1u << 30, sign_bit = 1u << 31;

  // Words are drawn for many groups before they are made into normals: two short loops run faster than one long one,
  // whose chain of dependent instructions is too long for the processor to look beyond.
  static constexpr int chunk_groups = 512 / group;

  // The words of `count` elements in pairs of (radius, angle), one vector of each to a group.
  [[gnu::always_inline]] void pairs(std::uint32_t first_block, std::int64_t count, vu32* radius, vu32* angle) const {
    for (std::int64_t i = 0; i * group < count; i += philox::units) {
      Words w[philox::units];
      words(first_block + static_cast<std::uint32_t>(i * group / 4), w);
      for (int u = 0; u < philox::units; ++u) {
        radius[i + u] = philox::pair(w[u].c0, w[u].c2);
        angle[i + u] = philox::pair(w[u].c1, w[u].c3);
      }
    }
  }

  [[gnu::always_inline]] static vf32 squared_radius(vu32 words) {
    return philox::minus_two_log(philox::to_unit(words));
  }

  // Four times the distance of the angle from the nearest quarter turn.
  [[gnu::always_inline]] static vi32 remainder(vu32 angle) { return bit_cast<vi32>(angle << 2); }

  // The elements of a group, in order.
  [[gnu::always_inline]] static void box_muller(vu32 radius_words, vu32 angle, float* out) {
    using namespace philox;
    const vf32 radius = sqrt(squared_radius(radius_words));
    const vu32 turns = angle + splat(eighth_turn);
    vf32 cosine, sine, low, high;
    cosine_sine(__builtin_convertvector(remainder(angle), vf32) * splat(0x1p-34f), cosine, sine);
    exchange_on_bit30(turns, cosine, sine);
    cosine = bit_cast<vf32>(bit_cast<vu32>(cosine) ^ ((turns + splat(quarter_turn)) & splat(sign_bit)));
    sine = bit_cast<vf32>(bit_cast<vu32>(sine) ^ (turns & splat(sign_bit)));
    interleave(radius * cosine, radius * sine, low, high);
    store(out, low);
    store(out + lanes32, high);
  }

  static void box_muller(vu32 radius_words, vu32 angle, double* out) {
    using namespace philox;
    const vu32 turns = angle + splat(eighth_turn);
    const auto unit = bit_cast<Halves<half_f32>>(to_unit(radius_words));
    const auto distance = bit_cast<Halves<half_i32>>(remainder(angle));
    for (int half = 0; half < 2; ++half) {
      const vf64 radius = sqrt(minus_two_log(__builtin_convertvector(unit.half[half], vf64)));
      vf64 cosine, sine;
      cosine_sine(__builtin_convertvector(distance.half[half], vf64) * splat(0x1p-34), cosine, sine);
      for (int i = 0; i < lanes64; ++i) {
        const int word = half * lanes64 + i;  // 2 * lane, plus 1 for the second pair of a block
        double* to = out + 4 * block_of_lane(word / 2) + 2 * (word % 2);
        const std::uint32_t t = turns[word];
        const double c = t & quarter_turn ? sine[i] : cosine[i], s = t & quarter_turn ? cosine[i] : sine[i];
        to[0] = radius[i] * ((t + quarter_turn) & sign_bit ? -c : c);
        to[1] = radius[i] * (t & sign_bit ? -s : s);
      }
    }
  }

  [[gnu::always_inline]] static vu64 splat64(std::uint32_t x) { return splat(std::uint64_t{x}); }

  using half_f32 = float __attribute__((vector_size(vector_bytes / 2)));
  using half_i32 = std::int32_t __attribute__((vector_size(vector_bytes / 2)));
  template <class Half>
  struct Halves {
    Half half[2];
  };

  vu64 lane_blocks_, round1_c2_, round2_c0_, round2_c2_, round2_c3_;
  vu64 key_[philox::rounds - 2][2];
};

}  // namespace fastscore::FASTSCORE_ISA

// The exponential function on vectors.
//
// exp(-v) = scale * poly with scale a power of 2^(1/8) (of 2 in baseline and in double) and poly the remaining power of
// 2, |exponent| <= 1/16 (1/2), as a minimax polynomial. The exponent -v * log2(e) is taken with one constant, not a
// pair: that costs up to 1.4e-8 |v| of relative error, a quarter of what the rounding of v itself costs.
#pragma once

#include "vec.h"

namespace fastscore::FASTSCORE_ISA {

// Below `lowest`, exp(-v) rounds to infinity; from `least` to `greatest` it is a normal number.
template <class V>
struct ExpRange;
template <>
struct ExpRange<vf32> {
  static constexpr float lowest = -88.75f, least = -87.0f, greatest = 87.0f;
};
template <>
struct ExpRange<vf64> {
  static constexpr double lowest = -709.8, least = -708.0, greatest = 708.0;
};

// NaN stays NaN: both instructions give their second operand then.
FASTSCORE_INLINE vf32 clamp(vf32 v, float low, float high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(splat(high), _mm512_max_ps(splat(low), v));
#elif defined(__AVX2__)
  return _mm256_min_ps(splat(high), _mm256_max_ps(splat(low), v));
#elif defined(__x86_64__)
  return _mm_min_ps(splat(high), _mm_max_ps(splat(low), v));
#else
  v = v < low ? splat(low) : v;
  return v > high ? splat(high) : v;
#endif
}
FASTSCORE_INLINE vf64 clamp(vf64 v, double low, double high) {
#if defined(__AVX512F__)
  return _mm512_min_pd(splat(high), _mm512_max_pd(splat(low), v));
#elif defined(__AVX2__)
  return _mm256_min_pd(splat(high), _mm256_max_pd(splat(low), v));
#elif defined(__x86_64__)
  return _mm_min_pd(splat(high), _mm_max_pd(splat(low), v));
#else
  v = v < low ? splat(low) : v;
  return v > high ? splat(high) : v;
#endif
}

template <class V>
struct ExpNegative {
  V scale, poly;  // exp(-v) = scale * poly
};

// Adding `magic` leaves the exponent, rounded to a multiple of its last bit, in the low bits of the sum.
FASTSCORE_INLINE ExpNegative<vf32> exp_negative(vf32 v) {
  const vf32 log2e = splat(-1.44269504f);
#if defined(__AVX2__)
  const vf32 magic = splat(0x1.8p20f);  // eighths
  const vf32 biased = fma(v, log2e, magic);
  const vf32 f = fma(v, log2e, magic - biased);
  vf32 p = splat(0.0554989006f);
  p = fma(p, f, splat(0.240264073f));
  p = fma(p, f, splat(0.693147209f));
  p = fma(p, f, splat(1.0f));
  // Entry j holds the bits of 2^(j/8), less j << 20: what the shift below leaves of j is taken back.
  constexpr std::int32_t root[8] = {0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7,
                                    0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7};
  vi32 table;
  for (int i = 0; i < lanes32; ++i) table[i] = root[i % 8];
  const vi32 eighths = bit_cast<vi32>(biased);
#if defined(__AVX512F__)
  const vi32 roots = bit_cast<vi32>(_mm512_permutexvar_epi32(bit_cast<__m512i>(eighths), bit_cast<__m512i>(table)));
#else
  const vi32 roots = bit_cast<vi32>(_mm256_permutevar8x32_epi32(bit_cast<__m256i>(table), bit_cast<__m256i>(eighths)));
#endif
  return {bit_cast<vf32>((eighths << 20) + roots), p};
#else
  const vf32 magic = splat(0x1.8p23f);  // integers
  const vf32 biased = fma(v, log2e, magic);
  const vf32 f = fma(v, log2e, magic - biased);
  vf32 p = splat(1.53458122e-4f);
  p = fma(p, f, splat(1.33999312e-3f));
  p = fma(p, f, splat(9.61848896e-3f));
  p = fma(p, f, splat(5.55032878e-2f));
  p = fma(p, f, splat(0.240226469f));
  p = fma(p, f, splat(0.693147206f));
  p = fma(p, f, splat(1.0f));
  return {bit_cast<vf32>((bit_cast<vi32>(biased) << 23) + splat(std::int32_t{0x3f800000})), p};
#endif
}

FASTSCORE_INLINE ExpNegative<vf64> exp_negative(vf64 v) {
  const vf64 log2e = splat(-1.4426950408889634), magic = splat(0x1.8p52);
  const vf64 biased = fma(v, log2e, magic);
  const vf64 f = fma(v, log2e, magic - biased);
  constexpr double c[] = {4.4352827069572771511e-10, 7.0741056135081427963e-9, 1.0178198021671930844e-7,
                          1.321543308967639918e-6,   1.5252733489988525649e-5, 1.5403530462514432062e-4,
                          1.3333558146789921722e-3,  9.6181291075883352443e-3, 5.5504108664819921605e-2,
                          0.24022650695910156204,    0.69314718055994533046,   1.0};
  vf64 p = splat(c[0]);
  for (int i = 1; i < 12; ++i) p = fma(p, f, splat(c[i]));
  return {bit_cast<vf64>((bit_cast<vi64>(biased) << 52) + splat(std::int64_t{0x3ff0000000000000})), p};
}

// (log2(e) - its constant above) * ln(2), for what exp_negative leaves out.
template <class V>
inline constexpr auto exp_correction = 1.33497582e-8f;
template <>
inline constexpr auto exp_correction<vf64> = 1.41092006e-17;

// 0 below -87 (-708 in double), infinite from 88.3 (709.4) on: a little earlier than it must be. NaN gives NaN.
template <class V>
FASTSCORE_INLINE V exp(V v) {
  using Range = ExpRange<V>;
  const auto parts = exp_negative(clamp(-v, Range::lowest, Range::greatest));
  const V e = parts.scale * fma(parts.poly, v * splat(exp_correction<V>), parts.poly);
  return v < splat(-Range::greatest) ? V{} : e;
}

}  // namespace fastscore::FASTSCORE_ISA

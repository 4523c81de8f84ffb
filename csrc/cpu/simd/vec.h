// Vectors of the native width of one instruction set: 16 bytes (baseline), 32 (AVX2 + FMA + F16C) or 64 (AVX-512).
//
// Included by the sources in this folder only. They are compiled once per instruction set with FASTSCORE_ISA set to
// `baseline`, `avx2` or `avx512`, and everything lives in the namespace of that name, so that the linker never mixes
// the copies. For the same reason no standard header with inline functions is included. The types are GCC vector
// extensions:
// + - * / & | ^ ~ << >> < == and `mask ? a : b` work on them, element by element; a mask is a vector of integers of the
// same width, all bits set where true. Compiled with -ffp-contract=off: what is fused is written `fma`.
//
//   vf32 vi32 vu32: lanes32 elements;  vf64 vi64 vu64: lanes64 elements
//   Acc<T>: the type in which tensors of T are computed (float, or double for double), its vector and its lanes
//   load / store: whole vectors of T from any address, converted to and from the vector of Acc<T>
//   load_n / store_n: the same for the first n elements only (0 <= n <= lanes); memory beyond them is not touched
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns about its own _mm512_undefined_*()
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#include "fastscore/dtype.h"

#ifndef FASTSCORE_ISA
#error "FASTSCORE_ISA must name the instruction set (setup.py compiles the files of csrc/cpu/simd)"
#endif

#define FASTSCORE_INLINE [[maybe_unused]] static inline __attribute__((always_inline))

namespace fastscore::FASTSCORE_ISA {

#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif
inline constexpr int lanes32 = vector_bytes / 4;
inline constexpr int lanes64 = vector_bytes / 8;

using vf32 = float __attribute__((vector_size(vector_bytes)));
using vi32 = std::int32_t __attribute__((vector_size(vector_bytes)));
using vu32 = std::uint32_t __attribute__((vector_size(vector_bytes)));
using vf64 = double __attribute__((vector_size(vector_bytes)));
using vi64 = std::int64_t __attribute__((vector_size(vector_bytes)));
using vu64 = std::uint64_t __attribute__((vector_size(vector_bytes)));

template <class T>
struct Acc {
  using scalar = float;
  using vec = vf32;
  static constexpr int lanes = lanes32;
};
template <>
struct Acc<double> {
  using scalar = double;
  using vec = vf64;
  static constexpr int lanes = lanes64;
};

// f(T{}) for the element type T that `dtype` names.
template <class F>
FASTSCORE_INLINE void for_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f64:
      return f(double{});
    case Dtype::bf16:
      return f(bf16{});
    case Dtype::f16:
      return f(f16{});
  }
}

// Vectors of half the bytes: what lanes32 16-bit elements, or lanes64 32-bit elements, fill.
using vu16_half = std::uint16_t __attribute__((vector_size(vector_bytes / 2)));
using vu32_half = std::uint32_t __attribute__((vector_size(vector_bytes / 2)));

// Of floating-point numbers, a difference: it folds away where a sum does not, since -0 + 0 is 0.
FASTSCORE_INLINE vf32 splat(float value) {
  return value - vf32{};
}
FASTSCORE_INLINE vf64 splat(double value) {
  return value - vf64{};
}
FASTSCORE_INLINE vi32 splat(std::int32_t value) {
  return vi32{} + value;
}
FASTSCORE_INLINE vu32 splat(std::uint32_t value) {
  return vu32{} + value;
}
FASTSCORE_INLINE vi64 splat(std::int64_t value) {
  return vi64{} + value;
}
FASTSCORE_INLINE vu64 splat(std::uint64_t value) {
  return vu64{} + value;
}

// The same bits as another type of the same size.
template <class To, class From>
FASTSCORE_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

// ---------------------------------------------------------------------------------------------- arithmetic

// a * b + c; one rounding where the instruction set has it, two in `baseline`.
FASTSCORE_INLINE vf32 fma(vf32 a, vf32 b, vf32 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  for (int i = 0; i < lanes32; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return a;
#else
  return a * b + c;
#endif
}

FASTSCORE_INLINE vf64 fma(vf64 a, vf64 b, vf64 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  for (int i = 0; i < lanes64; ++i) a[i] = __builtin_fma(a[i], b[i], c[i]);
  return a;
#else
  return a * b + c;
#endif
}

FASTSCORE_INLINE vf32 sqrt(vf32 a) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(a);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(a);
#elif defined(__x86_64__)
  return _mm_sqrt_ps(a);
#else
  for (int i = 0; i < lanes32; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

FASTSCORE_INLINE vf64 sqrt(vf64 a) {
#if defined(__AVX512F__)
  return _mm512_sqrt_pd(a);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(a);
#elif defined(__x86_64__)
  return _mm_sqrt_pd(a);
#else
  for (int i = 0; i < lanes64; ++i) a[i] = __builtin_sqrt(a[i]);
  return a;
#endif
}

FASTSCORE_INLINE vf32 min(vf32 a, vf32 b) {
  return a < b ? a : b;
}
FASTSCORE_INLINE vf32 max(vf32 a, vf32 b) {
  return a > b ? a : b;
}
FASTSCORE_INLINE vf64 min(vf64 a, vf64 b) {
  return a < b ? a : b;
}
FASTSCORE_INLINE vf64 max(vf64 a, vf64 b) {
  return a > b ? a : b;
}

// Sum of the lanes in a fixed order (pairwise, halves first).
FASTSCORE_INLINE float sum(vf32 a) {
  float lane[lanes32];
  __builtin_memcpy(lane, &a, sizeof a);
  for (int width = lanes32 / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

FASTSCORE_INLINE double sum(vf64 a) {
  double lane[lanes64];
  __builtin_memcpy(lane, &a, sizeof a);
  for (int width = lanes64 / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// Lanes [0, n) all ones, the rest zero.
FASTSCORE_INLINE vi32 first_lanes32(std::int64_t n) {
  vi32 index;
  for (int i = 0; i < lanes32; ++i) index[i] = i;
  return index < splat(static_cast<std::int32_t>(n));
}

FASTSCORE_INLINE vi64 first_lanes64(std::int64_t n) {
  vi64 index;
  for (int i = 0; i < lanes64; ++i) index[i] = i;
  return index < splat(n);
}

// ---------------------------------------------------------------------------------------------- 16-bit conversions

// Zeros in front of 16 bits, and away again. GCC 12 goes through halves of vectors for __builtin_convertvector.
FASTSCORE_INLINE vu32 lengthen(vu16_half bits) {
#if defined(__AVX512F__)
  return bit_cast<vu32>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return bit_cast<vu32>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, vu32);
#endif
}

FASTSCORE_INLINE vu16_half shorten(vu32 bits) {
#if defined(__AVX512F__)
  return bit_cast<vu16_half>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits)));
#elif defined(__AVX2__)
  const __m256i twice = _mm256_packus_epi32(bit_cast<__m256i>(bits), bit_cast<__m256i>(bits));
  return bit_cast<vu16_half>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(twice, 0x08)));
#else
  return __builtin_convertvector(bits, vu16_half);
#endif
}

FASTSCORE_INLINE vf32 widen(vu16_half bits, bf16) {
  return bit_cast<vf32>(lengthen(bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN (quiet).
FASTSCORE_INLINE vu16_half narrow(vf32 value, bf16) {
  const vu32 bits = bit_cast<vu32>(value);
  const vu32 rounded = (bits + (splat(0x7FFFu) + ((bits >> 16) & splat(1u)))) >> 16;
  // The carry may have turned a NaN into anything; these bits make it one again.
  return shorten(rounded | (bit_cast<vu32>(value != value) & splat(0x7FC0u)));
}

FASTSCORE_INLINE vf32 widen(vu16_half bits, f16) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(bit_cast<__m256i>(bits));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(bit_cast<__m128i>(bits));
#else
  // Shift the exponent and the mantissa into place, then scale by 2^112: this also makes subnormals right.
  const vu32 wide = __builtin_convertvector(bits, vu32);
  const vu32 magnitude = (wide & splat(0x7FFFu)) << 13;
  const vf32 finite = bit_cast<vf32>(magnitude) * splat(0x1p112f);
  const vu32 special = magnitude | splat(0x7F800000u);  // infinity and NaN
  const vi32 is_special = bit_cast<vi32>(wide & splat(0x7C00u)) == splat(std::int32_t{0x7C00});
  const vi32 result = is_special ? bit_cast<vi32>(special) : bit_cast<vi32>(finite);
  return bit_cast<vf32>(bit_cast<vu32>(result) | ((wide & splat(0x8000u)) << 16));
#endif
}

FASTSCORE_INLINE vu16_half narrow(vf32 value, f16) {
#if defined(__AVX512F__)
  return bit_cast<vu16_half>(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  return bit_cast<vu16_half>(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  const vu32 bits = bit_cast<vu32>(value);
  const vu32 sign = (bits >> 16) & splat(0x8000u);
  const vu32 magnitude = bits & splat(0x7FFFFFFFu);
  // Normal results: rebias the exponent by 127 - 15 and round the 13 lost bits to nearest even.
  const vu32 normal = (magnitude - splat(0x38000000u) + splat(0xFFFu) + ((magnitude >> 13) & splat(1u))) >> 13;
  // Subnormal results (below 2^-14): adding 0.5 lets the float adder do the rounding at the right bit.
  const vu32 small = bit_cast<vu32>(bit_cast<vf32>(magnitude) + splat(0.5f)) - splat(0x3F000000u);
  const vu32 nan = splat(0x7E00u) | ((magnitude >> 13) & splat(0x1FFu));
  const vi32 m = bit_cast<vi32>(magnitude);
  vi32 result = m < splat(std::int32_t{0x38800000}) ? bit_cast<vi32>(small) : bit_cast<vi32>(normal);
  result = m >= splat(std::int32_t{0x477FF000}) ? splat(std::int32_t{0x7C00}) : result;  // rounds to infinity
  result = m > splat(std::int32_t{0x7F800000}) ? bit_cast<vi32>(nan) : result;
  return __builtin_convertvector(bit_cast<vu32>(result) | sign, vu16_half);
#endif
}

// ---------------------------------------------------------------------------------------------- memory

FASTSCORE_INLINE vf32 load(const float* from) {
  vf32 value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
FASTSCORE_INLINE vf64 load(const double* from) {
  vf64 value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
FASTSCORE_INLINE void store(float* to, vf32 value) {
  __builtin_memcpy(to, &value, sizeof value);
}
FASTSCORE_INLINE void store(double* to, vf64 value) {
  __builtin_memcpy(to, &value, sizeof value);
}

FASTSCORE_INLINE vf32 load(const bf16* from) {
  vu16_half bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return widen(bits, bf16{});
}
FASTSCORE_INLINE vf32 load(const f16* from) {
  vu16_half bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return widen(bits, f16{});
}
FASTSCORE_INLINE void store(bf16* to, vf32 value) {
  const vu16_half bits = narrow(value, bf16{});
  __builtin_memcpy(to, &bits, sizeof bits);
}
FASTSCORE_INLINE void store(f16* to, vf32 value) {
  const vu16_half bits = narrow(value, f16{});
  __builtin_memcpy(to, &bits, sizeof bits);
}

// Tails go through a buffer on the stack; lanes beyond n read as zero.
template <class T>
FASTSCORE_INLINE typename Acc<T>::vec load_n(const T* from, std::int64_t n) {
  T buffer[Acc<T>::lanes] = {};
  for (std::int64_t i = 0; i < n; ++i) buffer[i] = from[i];
  return load(buffer);
}
template <class T>
FASTSCORE_INLINE void store_n(T* to, typename Acc<T>::vec value, std::int64_t n) {
  T buffer[Acc<T>::lanes];
  store(buffer, value);
  for (std::int64_t i = 0; i < n; ++i) to[i] = buffer[i];
}

}  // namespace fastscore::FASTSCORE_ISA

// IEEE binary16: conversions rounded to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

#include "emulator/vector_types.h"

struct __half {
  unsigned short bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half v) {
  const std::uint32_t sign = (v.bits & 0x8000u) << 16, exponent = v.bits >> 10 & 31, fraction = v.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  const float size = exponent == 0 ? static_cast<float>(fraction) * 0x1p-24f  // subnormal
                                   : std::bit_cast<float>((exponent + 112) << 23 | fraction << 13);
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(size));
}
inline __half __float2half_rn(float v) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(v), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  const auto half = [](std::uint32_t h) { return __half{static_cast<unsigned short>(h)}; };
  if (size > 0x7f800000u) return half(0x7fffu);          // the NaN that CUDA gives
  if (size >= 0x477ff000u) return half(sign | 0x7c00u);  // 65520 and more round to infinity
  if (size < 0x38800000u)                                // adding 0.5 leaves a multiple of 2^-24, rounded
    return half(sign | (std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000u));
  return half(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1)) >> 13));
}
inline __half __float2half(float v) {
  return __float2half_rn(v);
}
inline __half __ushort_as_half(unsigned short bits) {
  return {bits};
}
inline unsigned short __half_as_ushort(__half v) {
  return v.bits;
}

inline float2 __half22float2(__half2 v) {
  return {__half2float(v.x), __half2float(v.y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
inline __half2 __float22half2_rn(float2 v) {
  return __floats2half2_rn(v.x, v.y);
}
inline float __low2float(__half2 v) {
  return __half2float(v.x);
}
inline float __high2float(__half2 v) {
  return __half2float(v.y);
}

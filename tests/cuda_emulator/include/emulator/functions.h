// Device functions that are neither barriers nor conversions: loads, atomics, bits, arithmetic.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>

#include "emulator/shared.h"

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ------------------------------------------------------------------------------------------------ atomics

namespace emulator {

// One fiber runs at a time, so that nothing can come between.
template <class T, class Update>
T atomically(T* at, Update update) {
  const T old = *at;
  *at = update(old);
  return old;
}
template <class T, class Update>
T atomically(SharedPointer<T> at, Update update) {
  return (*at).atomically(update);
}

template <class Pointer>
struct Pointee;
template <class T>
struct Pointee<T*> {
  using type = T;
};
template <class T>
struct Pointee<SharedPointer<T>> {
  using type = T;
};
template <class Pointer, class... Types>
concept PointsTo = (std::same_as<typename Pointee<Pointer>::type, Types> || ...);
template <class Pointer>
using pointee_t = typename Pointee<Pointer>::type;

}  // namespace emulator

template <class P>
  requires emulator::PointsTo<P, int, unsigned, unsigned long long, float, double>
emulator::pointee_t<P> atomicAdd(P at, emulator::pointee_t<P> value) {
  using T = emulator::pointee_t<P>;
  return emulator::atomically(at, [&](T old) -> T {
    if constexpr (std::is_same_v<T, int>)
      return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));  // wraps around
    else
      return old + value;
  });
}
template <class P>
  requires emulator::PointsTo<P, int, unsigned, long long, unsigned long long>
emulator::pointee_t<P> atomicMax(P at, emulator::pointee_t<P> value) {
  return emulator::atomically(at, [&](auto old) { return std::max(old, value); });
}
template <class P>
  requires emulator::PointsTo<P, int, unsigned, long long, unsigned long long>
emulator::pointee_t<P> atomicMin(P at, emulator::pointee_t<P> value) {
  return emulator::atomically(at, [&](auto old) { return std::min(old, value); });
}
template <class P>
  requires emulator::PointsTo<P, int, unsigned, unsigned long long, float>
emulator::pointee_t<P> atomicExch(P at, emulator::pointee_t<P> value) {
  return emulator::atomically(at, [&](auto) { return value; });
}
template <class P>
  requires emulator::PointsTo<P, int, unsigned, unsigned long long, unsigned short>
emulator::pointee_t<P> atomicCAS(P at, emulator::pointee_t<P> expected, emulator::pointee_t<P> value) {
  return emulator::atomically(at, [&](auto old) { return old == expected ? value : old; });
}
// Counts up to `last`, then starts again at 0.
template <class P>
  requires emulator::PointsTo<P, unsigned>
unsigned atomicInc(P at, unsigned last) {
  return emulator::atomically(at, [&](unsigned old) { return old >= last ? 0u : old + 1; });
}

// ------------------------------------------------------------------------------------------------ arithmetic

inline int __popc(unsigned v) {
  return std::popcount(v);
}
inline int __clz(int v) {
  return std::countl_zero(static_cast<unsigned>(v));
}
inline int __ffs(int v) {
  return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(std::uint64_t{a} * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline float __uint_as_float(unsigned v) {
  return std::bit_cast<float>(v);
}
inline float __int_as_float(int v) {
  return std::bit_cast<float>(v);
}
inline unsigned __float_as_uint(float v) {
  return std::bit_cast<unsigned>(v);
}
inline int __float_as_int(float v) {
  return std::bit_cast<int>(v);
}
inline long long __double_as_longlong(double v) {
  return std::bit_cast<long long>(v);
}
inline double __longlong_as_double(long long v) {
  return std::bit_cast<double>(v);
}

// The approximate functions of the hardware are within a few units in the last place of these.
inline float __expf(float v) {
  return expf(v);
}
inline float __logf(float v) {
  return logf(v);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float v) {
  return 1.0f / v;
}
inline float __fsqrt_rn(float v) {
  return sqrtf(v);
}
inline float __frsqrt_rn(float v) {
  return static_cast<float>(1.0 / std::sqrt(double{v}));
}
inline float rsqrtf(float v) {
  return static_cast<float>(1.0 / std::sqrt(double{v}));
}
inline double rsqrt(double v) {
  return 1.0 / std::sqrt(v);
}
inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
  return fma(a, b, c);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline float __saturatef(float v) {
  return v > 0 ? (v < 1 ? v : 1.0f) : 0.0f;
}

#define EMULATOR_MIN_MAX(T) \
  inline T min(T a, T b) {  \
    return a < b ? a : b;   \
  }                         \
  inline T max(T a, T b) {  \
    return a > b ? a : b;   \
  }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}

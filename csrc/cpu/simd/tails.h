// One loop body for the whole vectors of a row and for the part of a vector at its end:
//
//   each_vector<T>(n, [&](std::int64_t i, auto part) { store(y + i, 2 * load(x + i, part), part); });
//
// `part` is Whole{}, or First{count} for the last few elements; loads beyond them give 0, stores do not reach them.
#pragma once

#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {

struct Whole {};
struct First {
  std::int64_t n;
};

template <class T>
FASTSCORE_INLINE auto load(const T* from, Whole) {
  return load(from);
}
template <class T>
FASTSCORE_INLINE auto load(const T* from, First tail) {
  return load_n(from, tail.n);
}
template <class T, class V>
FASTSCORE_INLINE void store(T* to, V value, Whole) {
  store(to, value);
}
template <class T, class V>
FASTSCORE_INLINE void store(T* to, V value, First tail) {
  store_n(to, value, tail.n);
}
// Zero in the lanes that are not there.
template <class V>
FASTSCORE_INLINE V keep(V value, Whole) {
  return value;
}
FASTSCORE_INLINE vf32 keep(vf32 value, First tail) {
  return first_lanes32(tail.n) ? value : splat(0.0f);
}
FASTSCORE_INLINE vf64 keep(vf64 value, First tail) {
  return first_lanes64(tail.n) ? value : splat(0.0);
}

// f(i, Whole or First) for the vectors of n elements.
template <class T, class F>
FASTSCORE_INLINE void each_vector(std::int64_t n, F&& f) {
  constexpr int lanes = Acc<T>::lanes;
  std::int64_t i = 0;
#pragma GCC unroll 2
  for (; i + lanes <= n; i += lanes) f(i, Whole{});
  if (i < n) f(i, First{n - i});
}

}  // namespace fastscore::FASTSCORE_ISA

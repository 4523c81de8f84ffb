// SiLU and its derivative on vectors:  silu(v) = v / (1 + exp(-v)).
//
// NaN gives NaN. Outside of the range where exp is finite the limits hold: silu(-1e4) = -0, silu(1e4) = 1e4.
#pragma once

#include "exp.h"

namespace fastscore::FASTSCORE_ISA {

// in_range: the caller knows that least <= v <= greatest.
template <bool in_range, class V>
FASTSCORE_INLINE V silu(V v) {
  using Range = ExpRange<V>;
  const auto e = exp_negative(in_range ? v : clamp(v, Range::lowest, Range::greatest));
  return v / fma(e.scale, e.poly, splat(decltype(Range::least){1}));
}

// d silu / dv = s (1 + v (1 - s)) with s = sigmoid(v) = 1 / (1 + e) and 1 - s = e s.
template <class V>
FASTSCORE_INLINE V silu_slope(V v) {
  using Range = ExpRange<V>;
  const V one = splat(decltype(Range::least){1});
  v = clamp(v, Range::least, Range::greatest);
  const auto parts = exp_negative(v);
  const V e = parts.scale * parts.poly;
  const V s = one / (one + e);
  return s * fma(v, e * s, one);
}

}  // namespace fastscore::FASTSCORE_ISA

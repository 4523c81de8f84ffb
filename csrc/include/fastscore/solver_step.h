// A sampler step whose network output is turned into a clamped prediction first: the arguments of the kernels, without
// any torch type.
//
//   m   = clamp(p * x + q * h, -c, c)
//   out = a * x + b_0 * m + sum_k b_k * history_k + w * z    with w = s, or s * exp(e * v) where v is given
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

inline constexpr int solver_max_history = 3;

struct SolverStepArgs {
  // A tensor of the batch: every sample is dense, in the one layout below; samples lie `stride` elements apart.
  struct Operand {
    const void* data = nullptr;
    std::int64_t stride = 0;
  };
  struct Target {
    void* data = nullptr;
    std::int64_t stride = 0;
  };
  Target out;
  Target m;  // null where it is not asked for
  Operand x, h;
  Operand history[solver_max_history];
  int history_count = 0;
  Operand exponent;  // v; null where it is not given
  Operand noise;     // null where it is drawn, or there is none

  // Rows [p, q, c, a, b_0 .. b_K, s, e] in float (double if the tensors are double); stride 0 where all samples share
  // a row.
  const void* coefficients = nullptr;
  std::int64_t coefficient_stride = 0;

  // Where the noise is drawn: rng = (seed, draw), samples[b] the index of sample b. Null where it is not.
  const std::int64_t* rng = nullptr;
  const std::int64_t* samples = nullptr;

  // Elements of a sample in memory: `pixels` rows of `channels`. Element (p, c) has the logical index c * pixels + p.
  // A contiguous sample has channels = 1.
  std::int64_t batch = 0, pixels = 0, channels = 1;
  Dtype dtype = Dtype::f32;
};

}  // namespace fastscore

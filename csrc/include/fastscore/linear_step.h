// out = a * x + sum_k b_k * h_k + s * z over a batch: the arguments of the kernels, without any torch type.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

inline constexpr int max_history = 6;

struct LinearStepArgs {
  // A tensor of the batch: every sample is dense, in the one layout below; samples lie `stride` elements apart.
  struct Operand {
    const void* data = nullptr;
    std::int64_t stride = 0;
  };
  void* out = nullptr;
  std::int64_t out_stride = 0;
  Operand x;
  Operand terms[max_history + 1];  // the history, then the noise if it is given
  int term_count = 0;
  bool noise_given = false;

  // Rows [a, b_1 .. b_K, s] in float (double if the tensors are double); stride 0 where all samples share a row.
  const void* coefficients = nullptr;
  std::int64_t coefficient_stride = 0;
  int coefficient_count = 2;

  // Where the noise is drawn: rng = (seed, draw), samples[b] the index of sample b. Null where it is not.
  const std::int64_t* rng = nullptr;
  const std::int64_t* samples = nullptr;

  // Elements of a sample in memory: `pixels` rows of `channels`. Element (p, c) has the logical index c * pixels + p.
  // A contiguous sample has channels = 1.
  std::int64_t batch = 0, pixels = 0, channels = 1;
  Dtype dtype = Dtype::f32;
};

}  // namespace fastscore

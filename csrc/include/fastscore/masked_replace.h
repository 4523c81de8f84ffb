// x = a * known + s * z where the mask is set, over a batch: the arguments of the kernels, without any torch type.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

struct MaskedReplaceArgs {
  // A tensor of the batch: every sample is dense, in the one layout below; samples lie `stride` elements apart.
  struct Operand {
    const void* data = nullptr;
    std::int64_t stride = 0;
  };
  void* x = nullptr;
  std::int64_t x_stride = 0;
  Operand known;
  Operand mask;   // bytes, 0 or 1
  Operand noise;  // null where it is drawn, or there is none

  // Rows [a, s] in float (double if the tensors are double); stride 0 where all samples share a row.
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

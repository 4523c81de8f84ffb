// The Langevin corrector over a batch: the arguments of the kernels, without any torch type.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

struct LangevinStepArgs {
  // A tensor of the batch: every sample is dense, in the one layout below; samples lie `stride` elements apart.
  struct Operand {
    const void* data = nullptr;
    std::int64_t stride = 0;
  };
  void* out = nullptr;
  std::int64_t out_stride = 0;
  Operand x, h;
  Operand noise;  // null where it is drawn

  // Rows [p, q, tau] in float (double if the tensors are double); stride 0 where all samples share a row.
  const void* coefficients = nullptr;
  std::int64_t coefficient_stride = 0;

  bool per_sample = false;  // each sample has norms of its own; false: the means over the batch

  // Where the noise is drawn: rng = (seed, draw), samples[b] the index of sample b.
  const std::int64_t* rng = nullptr;
  const std::int64_t* samples = nullptr;

  // Elements of a sample in memory: `pixels` rows of `channels`. Element (p, c) has the logical index c * pixels + p.
  // A contiguous sample has channels = 1.
  std::int64_t batch = 0, pixels = 0, channels = 1;
  Dtype dtype = Dtype::f32;

  // CUDA only. The channels of a sample in either layout, by which its sums are cut so that they do not depend on it;
  // 1 where it has none, or more than 256. And memory for the sums: langevin_step_scratch(args) doubles.
  std::int64_t planes = 1;
  double* scratch = nullptr;
};

}  // namespace fastscore

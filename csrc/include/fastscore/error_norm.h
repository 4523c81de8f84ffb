// The scaled error norm of adaptive solvers over a batch: the arguments of the kernels, without any torch type.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

inline constexpr int max_error_terms = 9;

struct ErrorNormArgs {
  // A tensor of the batch: every sample is dense, in the one layout below; samples lie `stride` elements apart.
  struct Operand {
    const void* data = nullptr;
    std::int64_t stride = 0;
  };
  Operand terms[max_error_terms], u, v;
  int term_count = 0;

  // Rows [c_1 .. c_K] in float (double if the tensors are double); stride 0 where all samples share a row.
  const void* coefficients = nullptr;
  std::int64_t coefficient_stride = 0;

  // scale = atol + rtol max(|u|, |v|), or where `larger` max(atol, rtol max(|u|, |v|))
  double atol = 0, rtol = 0;
  bool larger = false;

  // Element (c, p) of a sample lies at c * pixels + p, or where `channels_last` at p * channels + c.
  std::int64_t batch = 0, channels = 1, pixels = 0;
  bool channels_last = false;
  Dtype dtype = Dtype::f32;

  void* out = nullptr;        // (batch,), in the type of the coefficients
  double* scratch = nullptr;  // CUDA only: error_norm_scratch(args) of them, for the sums
};

}  // namespace fastscore

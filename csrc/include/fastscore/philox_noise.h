// Noise as a tensor: the arguments of the kernels, without any torch type.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

// `batch` contiguous rows of `size` elements; row b belongs to sample samples[b].
struct PhiloxArgs {
  void* out = nullptr;
  const std::int64_t* rng = nullptr;  // seed, draw
  const std::int64_t* samples = nullptr;
  std::int64_t batch = 0, size = 0;
  Dtype dtype = Dtype::f32;
};

}  // namespace fastscore

#pragma once

#include <cstdint>

#include "cpu/simd/kernel.h"
#include "fastscore/dtype.h"

namespace fastscore {

// Noise as a tensor: `batch` contiguous rows of `size` elements; row b belongs to sample samples[b].
struct PhiloxArgs {
  void* out = nullptr;
  const std::int64_t* rng = nullptr;  // seed, draw
  const std::int64_t* samples = nullptr;
  std::int64_t batch = 0, size = 0;
  Dtype dtype = Dtype::f32;

  // Work is cut into tiles of at most this many elements of one row.
  static constexpr std::int64_t tile = 1024;
  std::int64_t tiles_per_row() const { return (size + tile - 1) / tile; }
};

// philox_normal, philox_rademacher: tiles [begin, end); tile t is tile t % tiles_per_row of row t / tiles_per_row.
// philox_words: words of `count` blocks of one sample, four to a block.
#define FASTSCORE_DECLARE(isa)                                                                           \
  namespace isa {                                                                                        \
  void philox_normal(const PhiloxArgs& args, std::int64_t begin, std::int64_t end);                      \
  void philox_rademacher(const PhiloxArgs& args, std::int64_t begin, std::int64_t end);                  \
  void philox_words(std::int64_t seed, std::int64_t draw, std::int64_t sample, std::int64_t first_block, \
                    std::int64_t count, std::int64_t* out);                                              \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

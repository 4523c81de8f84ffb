#pragma once

#include <cstdint>

#include "cpu/simd/kernel.h"
#include "fastscore/philox_noise.h"

namespace fastscore {

// Work is cut into tiles of at most this many elements of one row.
inline constexpr std::int64_t philox_tile = 1024;

// How many of them a row has. Static, so that no copy is shared by the instruction sets.
static inline std::int64_t philox_tiles(const PhiloxArgs& args) {
  return (args.size + philox_tile - 1) / philox_tile;
}

// philox_normal, philox_rademacher: tiles [begin, end); tile t is tile t % philox_tiles of row t / philox_tiles.
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

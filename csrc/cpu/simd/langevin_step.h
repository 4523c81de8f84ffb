#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/langevin_step.h"

namespace fastscore {

inline constexpr std::int64_t langevin_tile = 1024;

// The first pass reads tiles of elements that follow each other logically, so that its sums do not depend on the memory
// format; the second writes tiles of whole pixels, which follow each other in memory. `channels` must not exceed a
// quarter of a tile.
struct LangevinTiles {
  std::int64_t elements_per_sample;  // tiles of the first pass in a sample
  std::int64_t pixels;               // pixels in a tile of the second pass, a multiple of 4
  std::int64_t pixels_per_sample;    // tiles of the second pass in a sample
};

// Tile t is tile t % (tiles of a sample) of sample t / (tiles of a sample); both do tiles [begin, end).
//   norms:   sums[2 t] = sum z^2 and sums[2 t + 1] = sum g^2 over the tile, with g = p x + q h
//   update:  out = x + step g + width z, with weights[2 b] = step and weights[2 b + 1] = width of sample b
#define FASTSCORE_DECLARE(isa)                                                                                       \
  namespace isa {                                                                                                    \
  void langevin_norms(const LangevinStepArgs& args, LangevinTiles tiles, double* sums, std::int64_t begin,           \
                      std::int64_t end);                                                                             \
  void langevin_update(const LangevinStepArgs& args, LangevinTiles tiles, const double* weights, std::int64_t begin, \
                       std::int64_t end);                                                                            \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

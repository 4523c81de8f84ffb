#pragma once

#include "cpu/simd/kernel.h"
#include "cpu/simd/step_tiles.h"
#include "fastscore/langevin_step.h"

namespace fastscore {

// The first pass reads tiles of elements that follow each other logically, so that its sums do not depend on the memory
// format; the second writes `StepTiles`. Tile t of the first pass is tile t % per_sample of sample t / per_sample, of
// step_tile elements; both do tiles [begin, end).
//   norms:   sums[2 t] = sum z^2 and sums[2 t + 1] = sum g^2 over the tile, with g = p x + q h
//   update:  out = x + step g + width z, with weights[2 b] = step and weights[2 b + 1] = width of sample b
#define FASTSCORE_DECLARE(isa)                                                                                   \
  namespace isa {                                                                                                \
  void langevin_norms(const LangevinStepArgs& args, std::int64_t per_sample, double* sums, std::int64_t begin,   \
                      std::int64_t end);                                                                         \
  void langevin_update(const LangevinStepArgs& args, StepTiles tiles, const double* weights, std::int64_t begin, \
                       std::int64_t end);                                                                        \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

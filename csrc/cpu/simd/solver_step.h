#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/solver_step.h"

namespace fastscore {

// Work is cut into tiles of at most `solver_step_tile` elements of one sample; a tile of a channels-last sample is a
// run of whole pixels, so `channels` must not exceed a quarter of it.
inline constexpr std::int64_t solver_step_tile = 1024;

struct SolverStepTiles {
  std::int64_t pixels;      // rows of a sample in one tile, a multiple of 4
  std::int64_t per_sample;  // tiles of a sample
};

// Does tiles [begin, end); tile t is tile t % per_sample of sample t / per_sample.
#define FASTSCORE_DECLARE(isa)                                                                               \
  namespace isa {                                                                                            \
  void solver_step(const SolverStepArgs& args, SolverStepTiles tiles, std::int64_t begin, std::int64_t end); \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

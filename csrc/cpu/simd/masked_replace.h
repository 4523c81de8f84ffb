#pragma once

#include "cpu/simd/kernel.h"
#include "cpu/simd/step_tiles.h"
#include "fastscore/masked_replace.h"

namespace fastscore {

// Does tiles [begin, end).
#define FASTSCORE_DECLARE(isa)                                                                               \
  namespace isa {                                                                                            \
  void masked_replace(const MaskedReplaceArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end); \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

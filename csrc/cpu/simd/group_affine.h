#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/group_affine.h"

namespace fastscore {

// Two phases, in this order. sum does blocks [begin, end), block t being block t % blocks of sample t / blocks; finish
// does samples [begin, end). No result depends on how the ranges are cut.
#define FASTSCORE_DECLARE(isa)                                                                 \
  namespace isa {                                                                              \
  void group_affine_sum(const GroupAffineArgs& args, std::int64_t begin, std::int64_t end);    \
  void group_affine_finish(const GroupAffineArgs& args, std::int64_t begin, std::int64_t end); \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/group_norm_silu.h"

namespace fastscore {

// contiguous: does everything for groups [begin, end); group t is group t % groups of sample t / groups.
// channels_last_*: the four phases, in this order. prepare and finish do samples [begin, end), sum and write do blocks
// [begin, end); block t is block t % blocks of sample t / blocks. A sample needs nothing of another one.
// No result depends on how the ranges are cut.
#define FASTSCORE_DECLARE(isa)                                                                                        \
  namespace isa {                                                                                                     \
  void group_norm_silu_contiguous(const GroupNormSiluCpuArgs& args, std::int64_t begin, std::int64_t end);            \
  void group_norm_silu_channels_last_prepare(const GroupNormSiluCpuArgs& args, std::int64_t begin, std::int64_t end); \
  void group_norm_silu_channels_last_sum(const GroupNormSiluCpuArgs& args, std::int64_t begin, std::int64_t end);     \
  void group_norm_silu_channels_last_finish(const GroupNormSiluCpuArgs& args, std::int64_t begin, std::int64_t end);  \
  void group_norm_silu_channels_last_write(const GroupNormSiluCpuArgs& args, std::int64_t begin, std::int64_t end);   \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

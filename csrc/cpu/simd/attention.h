#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/attention.h"

namespace fastscore {

inline constexpr std::int64_t attention_most_panels = 4;  // at a time, of attention_panel() queries each

// Blocks of queries [begin, end): block t is block t % blocks of head t / blocks, of args.panels panels. `memory` has
// attention_scratch(args) elements, on a cache line of its own. No result depends on args.panels.
#define FASTSCORE_DECLARE(isa)                                                                    \
  namespace isa {                                                                                 \
  std::int64_t attention_panel();                                                                 \
  std::int64_t attention_scratch(const AttentionArgs& args);                                      \
  void attention(const AttentionArgs& args, float* memory, std::int64_t begin, std::int64_t end); \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

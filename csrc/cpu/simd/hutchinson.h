#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/hutchinson.h"

namespace fastscore {

// A tile is a run of at most this many elements of one probe of one sample, in logical order: so the sums are the same
// bits in all memory formats. Whole blocks of Philox words.
inline constexpr std::int64_t hutchinson_tile = 2048;

// Tiles of a sample. Static, so that no copy is shared by the instruction sets.
template <class Args>
static inline std::int64_t hutchinson_tiles(const Args& args) {
  return (args.pixels * args.channels + hutchinson_tile - 1) / hutchinson_tile;
}

// Tiles [begin, end); tile t is tile t % hutchinson_tiles of row t / hutchinson_tiles, and row r is sample r % batch of
// probe r / batch.
// hutchinson: sums[t] = sum of eps * jvp over tile t. hutchinson_probe: writes the tiles.
#define FASTSCORE_DECLARE(isa)                                                                     \
  namespace isa {                                                                                  \
  void hutchinson(const HutchinsonArgs& args, double* sums, std::int64_t begin, std::int64_t end); \
  void hutchinson_probe(const HutchinsonProbeArgs& args, std::int64_t begin, std::int64_t end);    \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

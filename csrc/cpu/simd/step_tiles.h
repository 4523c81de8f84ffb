// How the steps cut a batch into tiles. Holds no function: the sources of all instruction sets and their callers
// include it.
#pragma once

#include <cstdint>

namespace fastscore {

inline constexpr std::int64_t step_tile = 1024;

// A tile is a run of whole pixels of one sample, of at most `step_tile` elements, so `channels` must not exceed a
// quarter of it. Tile t is tile t % per_sample of sample t / per_sample.
struct StepTiles {
  std::int64_t pixels;      // of a tile, a multiple of 4
  std::int64_t per_sample;  // tiles of a sample
};

}  // namespace fastscore

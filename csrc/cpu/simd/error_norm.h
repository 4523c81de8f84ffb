#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/error_norm.h"

namespace fastscore {

inline constexpr std::int64_t error_norm_channels = 256;  // most channels of the channels-last path

// A tile is a range of pixels in all channels of a sample.
struct ErrorNormTiles {
  std::int64_t pixels;      // of a tile; the last one of a sample may have fewer
  std::int64_t per_sample;  // tiles of a sample
};

// sums[t] = sum of (e / scale)^2 over tile t, for tiles [begin, end), in an order that the memory format does not
// change. Tile t is tile t % per_sample of sample t / per_sample.
#define FASTSCORE_DECLARE(isa)                                                                       \
  namespace isa {                                                                                    \
  void error_norm(const ErrorNormArgs& args, ErrorNormTiles tiles, double* sums, std::int64_t begin, \
                  std::int64_t end);                                                                 \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

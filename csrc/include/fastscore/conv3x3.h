// The arguments of the Winograd kernels: stride 1, padding 1.
#pragma once

#include "fastscore/conv_args.h"

namespace fastscore {

// Weights are transformed, (ceil(outputs / panel), (tile + 2)^2, channels, panel).
struct Conv3x3Args : ConvArgs {
  std::int64_t height = 0, width = 0;  // of out
  int tile = 4;                        // outputs of a tile along one side, 2 or 4

  // (B, ceil(height / tile), 3, outputs): of what was written to each strip of `tile` rows, before it is rounded to a
  // type of 16 bits, a center and the sums of differences from it and of their squares, which cancel less than sums of
  // the values; rows lie `statistics_stride` apart. Or null.
  float* statistics = nullptr;
  std::int64_t statistics_stride = 0;
};

}  // namespace fastscore

// The arguments of the Winograd kernels: stride 1, padding 1.
#pragma once

#include "fastscore/conv_args.h"

namespace fastscore {

// Weights are transformed, (ceil(outputs / panel), (tile + 2)^2, channels, panel).
struct Conv3x3Args : ConvArgs {
  std::int64_t height = 0, width = 0;  // of out
  int tile = 4;                        // outputs of a tile along one side, 2 or 4

  // (B, ceil(height / tile), outputs, 2): mean, and sum of squared deviations from it, of what was written to each
  // strip of `tile` rows, before it is rounded to a type of 16 bits; or null.
  float* statistics = nullptr;
};

}  // namespace fastscore

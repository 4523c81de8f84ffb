// The arguments of the direct convolution.
#pragma once

#include "fastscore/conv_args.h"

namespace fastscore {

// Weights are packed, (ceil(outputs / panel), kernel^2 * channels, panel).
struct ConvGemmArgs : ConvArgs {
  std::int64_t height = 0, width = 0;  // of x
  std::int64_t out_height = 0, out_width = 0;
  int kernel = 1, stride = 1;
  int padding = 0;  // rows and columns of zeros in front; behind, as many as out needs
};

}  // namespace fastscore

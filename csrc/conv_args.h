// Checks and fills what convolutions that write into given memory have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fastscore/conv_args.h"

namespace fastscore {

// What stands in front of a convolution and behind it. Images are pixel rows (pixel_rows.h), and so are parameters, as
// they are: nothing is copied, no memory is allocated. `upsample`: x is read as if enlarged twice by nearest neighbor.
// `out` may be `residual`.
struct Surroundings {
  const std::optional<at::Tensor>&bias, &shift, &residual;
  double scale;
  const std::optional<at::Tensor>&gain, &offset;
  bool silu, upsample;
};

// Strides, and all of `args` that depends on x, `outputs` and out alone; the weights and the shape of `out` have been
// checked by the caller, or are afterwards.
void set_surroundings(ConvArgs& args, const at::Tensor& x, std::int64_t outputs, const Surroundings& around,
                      const at::Tensor& out, const char* op);

}  // namespace fastscore

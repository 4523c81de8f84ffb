// out = (conv(act(gain * x + offset), w) + bias + shift + residual) * scale: what the convolutions that write into
// given memory have in common, without any torch type. Images are pixels whose channels lie side by side, of `dtype`;
// everything else is float32, and so is the arithmetic.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

struct ConvArgs {
  Dtype dtype = Dtype::f32;
  const void* x = nullptr;
  void* out = nullptr;
  const float* weights = nullptr;
  std::int64_t batch = 0, channels = 0, outputs = 0;
  std::int64_t x_stride = 0, out_stride = 0;  // elements from pixel to pixel
  bool upsample = false;                      // each pixel of x is read as if it stood there four times, in a square

  // In front: (B, C) each, both or neither; then SiLU. Zeros around the image are put there afterwards.
  const float *gain = nullptr, *offset = nullptr;
  std::int64_t gain_stride = 0, offset_stride = 0;  // from sample to sample
  bool silu = false;

  const float* bias = nullptr;     // (outputs)
  const float* shift = nullptr;    // (B, outputs)
  const void* residual = nullptr;  // like out
  std::int64_t shift_stride = 0, residual_stride = 0;
  float scale = 1;
};

}  // namespace fastscore

// out = (conv(act(gain * x + offset), w) + bias + shift + residual) * scale: the arguments of the direct convolution,
// without any torch type. Images are float32, (B, H, W) pixels whose channels lie side by side.
#pragma once

#include <cstdint>

namespace fastscore {

struct ConvGemmArgs {
  const float* x = nullptr;
  float* out = nullptr;
  const float* weights = nullptr;  // packed, (ceil(outputs / panel), kernel^2 * channels, panel)
  std::int64_t batch = 0, height = 0, width = 0, channels = 0;  // of x
  std::int64_t out_height = 0, out_width = 0, outputs = 0;
  std::int64_t x_stride = 0, out_stride = 0;  // elements from pixel to pixel
  int kernel = 1, stride = 1;
  int padding = 0;        // rows and columns of zeros in front; behind, as many as out needs
  bool upsample = false;  // each pixel of x is read as if it stood there four times, in a square

  // In front: (B, C) each, both or neither; then SiLU. Zeros around the image are put there afterwards.
  const float *gain = nullptr, *offset = nullptr;
  std::int64_t gain_stride = 0, offset_stride = 0;  // from sample to sample
  bool silu = false;

  const float* bias = nullptr;      // (outputs)
  const float* shift = nullptr;     // (B, outputs)
  const float* residual = nullptr;  // like out
  std::int64_t shift_stride = 0, residual_stride = 0;
  float scale = 1;
};

}  // namespace fastscore

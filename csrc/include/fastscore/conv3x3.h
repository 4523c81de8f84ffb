// out = (conv(act(gain * x + offset), w) + bias + shift + residual) * scale, stride 1, padding 1: the arguments of the
// Winograd kernels, without any torch type. Images are float32, (B, H, W) pixels whose channels lie side by side.
#pragma once

#include <cstdint>

namespace fastscore {

struct Conv3x3Args {
  const float* x = nullptr;
  float* out = nullptr;
  const float* weights = nullptr;  // transformed, (ceil(outputs / panel), (tile + 2)^2, channels, panel)
  std::int64_t batch = 0, height = 0, width = 0, channels = 0, outputs = 0;  // height and width of out
  std::int64_t x_stride = 0, out_stride = 0;                                 // elements from pixel to pixel
  int tile = 4;                                                              // outputs of a tile along one side, 2 or 4
  bool upsample = false;  // x has half the height and width, and is read as if each pixel stood there four times

  // In front: (B, C) each, both or neither; then SiLU. Zeros around the image are put there afterwards.
  const float *gain = nullptr, *offset = nullptr;
  std::int64_t gain_stride = 0, offset_stride = 0;  // from sample to sample
  bool silu = false;

  const float* bias = nullptr;      // (outputs)
  const float* shift = nullptr;     // (B, outputs)
  const float* residual = nullptr;  // like out
  std::int64_t shift_stride = 0, residual_stride = 0;
  float scale = 1;

  // (B, ceil(height / tile), outputs, 2): mean, and sum of squared deviations from it, of what was written to each
  // strip of `tile` rows; or null.
  float* statistics = nullptr;
};

}  // namespace fastscore

// out = (conv(act(gain * x + offset), w) + bias + shift + residual) * scale, stride 1, padding 1: the arguments of the
// Winograd kernels, without any torch type. All images are (B, H, W, C) in memory, float32, dense.
#pragma once

#include <cstdint>

namespace fastscore {

struct Conv3x3Args {
  const float* x = nullptr;
  float* out = nullptr;
  const float* weights = nullptr;  // transformed, (ceil(outputs / panel), (tile + 2)^2, channels, panel)
  std::int64_t batch = 0, height = 0, width = 0, channels = 0, outputs = 0;
  int tile = 4;  // outputs of a tile along one side, 2 or 4

  // In front: (B, C) each, both or neither; then SiLU. Zeros around the image are put there afterwards.
  const float *gain = nullptr, *offset = nullptr;
  bool silu = false;

  const float* bias = nullptr;      // (outputs)
  const float* shift = nullptr;     // (B, outputs)
  const float* residual = nullptr;  // like out
  float scale = 1;
};

}  // namespace fastscore

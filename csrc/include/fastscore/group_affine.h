// GroupNorm as a gain and an offset per sample and channel: what the kernels of the CPU get, without any torch type.
#pragma once

#include <cstdint>

namespace fastscore {

struct GroupAffineArgs {
  struct Rows {  // (B, C), rows `stride` elements apart
    const float* data = nullptr;
    std::int64_t stride = 0;
  };

  const float* x = nullptr;                  // (B, pixels, C), pixels `pixel_stride` elements apart
  float *gain = nullptr, *offset = nullptr;  // (B, C)
  std::int64_t gain_stride = 0, offset_stride = 0;
  const float *weight = nullptr, *bias = nullptr;  // (C,), or nothing
  Rows scale, shift;                               // or nothing
  std::int64_t batch = 0, pixels = 0, channels = 0, groups = 1, pixel_stride = 0;
  double eps = 0;

  std::int64_t rows = 1, blocks = 1;  // pixels of a block, blocks of a sample

  // (B, blocks, 3, C), rows `partial_stride` apart: a center, sums of x - center, and of its squares. What conv3x3 has
  // found while it wrote x needs no pass over it.
  float* partial = nullptr;
  std::int64_t partial_stride = 0;

  double* totals = nullptr;  // (B, 2, C): means, squared deviations
};

}  // namespace fastscore

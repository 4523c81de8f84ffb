// out[i, j] = sum over taps (a, b) of w[a, b] * z[down * i + a - before, down * j + b - before], where z is x with up -
// 1 zeros after every pixel and zeros around: the arguments of the kernels, without any torch type.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

inline constexpr int max_taps = 8;  // to a row

struct ResampleArgs {
  // (B, C, H, W), every sample dense, channels slowest or fastest; samples lie `stride` elements apart.
  // Heights and widths are below 2^30.
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  std::int64_t batch = 0, channels = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  bool channels_last = false;

  // (length, length), dense, in float (double if the tensors are double). w is `taps` where `flip`, else `taps` turned
  // by half a turn: then the sum is a convolution.
  const void* taps = nullptr;
  int length = 0;
  bool flip = false;

  int up = 1, down = 1;  // 1 or 2, not both 2
  std::int64_t before = 0;
  Dtype dtype = Dtype::f32;
};

}  // namespace fastscore

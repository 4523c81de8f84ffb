// GroupNorm with embedding inputs and SiLU, its gradient and its tangent: the arguments of the kernels, without any
// torch type. The formulas are those of fastscore/reference/group_norm_silu.py.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

enum class GroupNormSiluKind : std::int32_t { forward, backward, jvp };

struct GroupNormSiluArgs {
  // A tensor like x: every sample is dense, in the layout of the kernel; samples lie `stride` elements apart.
  struct Operand {
    const void* data = nullptr;
    std::int64_t stride = 0;
  };
  // A number per channel: rows of `channels`, `stride` elements apart. Stride 0: all samples share one row. Null:
  // absent. The CPU takes them in the op dtype alone (float, or double for double).
  struct Parameter {
    const void* data = nullptr;
    std::int64_t stride = 0;
    Dtype dtype = Dtype::f32;
  };
  struct Parameters {
    Parameter weight, bias, add, scale, shift;
  };

  GroupNormSiluKind kind = GroupNormSiluKind::forward;
  Dtype dtype = Dtype::f32;
  bool silu = true;
  double eps = 0;
  std::int64_t batch = 0, channels = 0, groups = 0, pixels = 0;

  Operand x, other;                       // other: the gradient of y (backward), the tangent of x (jvp)
  Parameters value, tangent;              // tangent: jvp only
  void *mean = nullptr, *rstd = nullptr;  // (batch, groups), op dtype; written by forward, read by the others
  void* out = nullptr;                    // y, the gradient of x, the tangent of y: dense, in the layout of the kernel
};

struct GroupNormSiluCpuArgs : GroupNormSiluArgs {
  // Scratch. `sums`: per sample and channel. backward leaves in it, for the gradients of the parameters, sums over
  // pixels: [0] of g = dL/dv, [1] of g * xhat, [2] of the gradient of x.
  double* sums = nullptr;        // (batch, 3, channels)
  void* coefficients = nullptr;  // (batch, group_norm_silu_coefficients, lane_channels), op dtype

  // Channels last only. A sample is cut into blocks of `rows` rows of lane_channels = fold * channels elements: `fold`
  // pixels lie side by side in a row, so that a row of few channels fills vectors as well.
  std::int64_t fold = 1, lane_channels = 0, rows = 0, blocks = 0;
  void* partial = nullptr;  // (batch, blocks, 3, lane_channels), op dtype
};

inline constexpr std::int64_t group_norm_silu_coefficients = 7;

}  // namespace fastscore

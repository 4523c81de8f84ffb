// The torch side of resample.
#pragma once

#include <ATen/core/Tensor.h>

#include "fastscore/resample.h"

namespace fastscore {

using ResampleLaunch = void (*)(const ResampleArgs& args, const at::Tensor& out);

// Checks what would crash a kernel, and launches. `size` is that of the result, (H', W').
at::Tensor resample(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                    std::int64_t before, at::IntArrayRef size, bool flip, ResampleLaunch launch);

// The same into `out`, whose samples are dense, contiguous or channels last.
void resample_into(const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down, std::int64_t before,
                   bool flip, const at::Tensor& out, ResampleLaunch launch);

void resample_launch_cpu(const ResampleArgs& args, const at::Tensor& out);

}  // namespace fastscore

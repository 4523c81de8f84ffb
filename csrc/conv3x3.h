// The torch side of conv3x3.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fastscore/conv3x3.h"

namespace fastscore {

using Conv3x3Launch = void (*)(const Conv3x3Args& args);

// (conv(act(gain * x + offset), w) + bias + shift + residual) * scale, of weights that are transformed for tiles of
// `tile` x `tile` outputs. x is float32 or bfloat16, and residual as it is; the arithmetic is float32, rounded once.
// Checks what would crash a kernel, and launches.
at::Tensor conv3x3(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
                   const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
                   const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
                   const std::optional<at::Tensor>& offset, bool silu, Conv3x3Launch launch);

// The same into `out`; x, residual and out are float32 or bfloat16, parameters float32; images are pixel rows
// (pixel_rows.h), and so are parameters, as they are: nothing is copied, no memory is allocated. `upsample`: x has half
// the height and width of out, and each of its pixels is read four times. `statistics`: see Conv3x3Args.
void conv3x3_into(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
                  const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
                  const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
                  const std::optional<at::Tensor>& offset, bool silu, bool upsample,
                  const std::optional<at::Tensor>& statistics, const at::Tensor& out, Conv3x3Launch launch);

// Weights (K, C, 3, 3), float32 or bfloat16, as float32, transformed for tiles of `tile` x `tile` outputs: (panels,
// (tile + 2)^2, C, panel). `turned`: of the convolution that gives the gradient in the input, C and K exchanged.
at::Tensor conv3x3_weights_cpu(const at::Tensor& weight, std::int64_t tile, bool turned);

void conv3x3_launch_cpu(const Conv3x3Args& args);

// Outputs whose weights lie side by side, on this CPU.
std::int64_t conv3x3_panel();

}  // namespace fastscore

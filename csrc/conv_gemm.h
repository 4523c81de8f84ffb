// The torch side of conv_gemm.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fastscore/conv_gemm.h"

namespace fastscore {

using ConvGemmLaunch = void (*)(const ConvGemmArgs& args);

// (conv(act(gain * x + offset), w) + bias + shift + residual) * scale into `out`, of packed weights. Images are pixel
// rows (pixel_rows.h), and so are parameters, as they are: nothing is copied, no memory is allocated. `upsample`: x is
// read as if enlarged twice by nearest neighbor. `out` may be `residual`.
void conv_gemm_into(const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t kernel,
                    std::int64_t stride, std::int64_t padding, const std::optional<at::Tensor>& bias,
                    const std::optional<at::Tensor>& shift, const std::optional<at::Tensor>& residual, double scale,
                    const std::optional<at::Tensor>& gain, const std::optional<at::Tensor>& offset, bool silu,
                    bool upsample, const at::Tensor& out, ConvGemmLaunch launch);

// Weights (K, C, k, k) or (K, C), float32, packed: (panels, k * k * C, panel).
at::Tensor conv_gemm_weights_cpu(const at::Tensor& weight);

void conv_gemm_launch_cpu(const ConvGemmArgs& args);

// Outputs whose weights lie side by side, on this CPU.
std::int64_t conv_gemm_panel();

}  // namespace fastscore

// The torch side of error_norm, shared by the CPU and the CUDA registration.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "fastscore/error_norm.h"

namespace fastscore {

using ErrorNormLaunch = void (*)(const ErrorNormArgs& args, const at::Tensor& out);

// Checks what would crash a kernel, brings the operands to one layout, and launches.
at::Tensor error_norm(at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u, const at::Tensor& v,
                      double atol, double rtol, std::string_view kind, ErrorNormLaunch launch);

void error_norm_launch_cpu(const ErrorNormArgs& args, const at::Tensor& out);

}  // namespace fastscore

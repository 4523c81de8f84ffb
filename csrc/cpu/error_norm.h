// The torch side of error_norm on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

namespace fastscore {

// Checks what would crash the kernel, brings the operands to one layout, and runs the one pass.
at::Tensor error_norm_cpu(at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u,
                          const at::Tensor& v, double atol, double rtol, std::string_view kind);

}  // namespace fastscore

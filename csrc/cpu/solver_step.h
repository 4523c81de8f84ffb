// The torch side of solver_step on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace fastscore {

// Checks what would crash the kernel, brings the operands to one layout, and runs it. Returns (out, m).
std::tuple<at::Tensor, at::Tensor> solver_step_cpu(const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                                                   const at::Tensor& coefficients,
                                                   const std::optional<at::Tensor>& exponent,
                                                   const std::optional<at::Tensor>& noise,
                                                   const std::optional<at::Tensor>& rng,
                                                   const std::optional<at::Tensor>& samples);

}  // namespace fastscore

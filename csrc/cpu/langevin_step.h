// The torch side of langevin_step on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fastscore {

// Checks what would crash the kernel, brings the operands to one layout, and runs both passes.
at::Tensor langevin_step_cpu(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                             const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                             const std::optional<at::Tensor>& samples, bool per_sample);

}  // namespace fastscore

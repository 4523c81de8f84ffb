// The torch side of linear_step, shared by the CPU and the CUDA registration.
#pragma once

#include <ATen/core/Tensor.h>

#include "fastscore/linear_step.h"

namespace fastscore {

using LinearStepLaunch = void (*)(const LinearStepArgs& args, const at::Tensor& out);

// Checks what would crash a kernel, brings the operands to one layout, and launches.
at::Tensor linear_step(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                       const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                       const std::optional<at::Tensor>& samples, LinearStepLaunch launch);
void linear_step_(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                  const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                  const std::optional<at::Tensor>& samples, LinearStepLaunch launch);

void linear_step_launch_cpu(const LinearStepArgs& args, const at::Tensor& out);

}  // namespace fastscore

// The torch side of langevin_step, shared by the CPU and the CUDA registration.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fastscore/langevin_step.h"

namespace fastscore {

using LangevinStepLaunch = void (*)(const LangevinStepArgs& args, const at::Tensor& out);

// Checks what would crash a kernel, brings the operands to one layout, and launches.
at::Tensor langevin_step(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                         const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                         const std::optional<at::Tensor>& samples, bool per_sample, LangevinStepLaunch launch);
void langevin_step_(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                    const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                    const std::optional<at::Tensor>& samples, bool per_sample, LangevinStepLaunch launch);

void langevin_step_launch_cpu(const LangevinStepArgs& args, const at::Tensor& out);

}  // namespace fastscore

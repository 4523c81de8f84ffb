// The torch side of solver_step, shared by the CPU and the CUDA registration.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "fastscore/solver_step.h"

namespace fastscore {

using SolverStepLaunch = void (*)(const SolverStepArgs& args, const at::Tensor& out);

// Checks what would crash a kernel, brings the operands to one layout, and launches. Returns (out, m).
std::tuple<at::Tensor, at::Tensor> solver_step(const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                                               const at::Tensor& coefficients,
                                               const std::optional<at::Tensor>& exponent,
                                               const std::optional<at::Tensor>& noise,
                                               const std::optional<at::Tensor>& rng,
                                               const std::optional<at::Tensor>& samples, SolverStepLaunch launch);
void solver_step_(const at::Tensor& x, const at::Tensor& h, at::TensorList history, const at::Tensor& coefficients,
                  const std::optional<at::Tensor>& exponent, const std::optional<at::Tensor>& noise,
                  const std::optional<at::Tensor>& rng, const std::optional<at::Tensor>& samples,
                  const std::optional<at::Tensor>& m, SolverStepLaunch launch);

void solver_step_launch_cpu(const SolverStepArgs& args, const at::Tensor& out);

}  // namespace fastscore

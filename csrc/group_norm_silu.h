// The torch side of group_norm_silu: checks what would crash a kernel, brings the operands to one layout, and runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace fastscore {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_silu_fwd_cpu(
    const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& add,
    const OptionalTensor& scale, const OptionalTensor& shift, std::int64_t num_groups, double eps, bool silu);

// Gradients of x, weight, bias, add, scale, shift; those of absent parameters are empty.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> group_norm_silu_bwd_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift, const at::Tensor& mean,
    const at::Tensor& rstd, std::int64_t num_groups, bool silu);

at::Tensor group_norm_silu_jvp_cpu(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift,
                                   const at::Tensor& mean, const at::Tensor& rstd, const OptionalTensor& x_t,
                                   const OptionalTensor& weight_t, const OptionalTensor& bias_t,
                                   const OptionalTensor& add_t, const OptionalTensor& scale_t,
                                   const OptionalTensor& shift_t, std::int64_t num_groups, bool silu);

}  // namespace fastscore

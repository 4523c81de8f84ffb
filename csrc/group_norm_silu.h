// The torch side of group_norm_silu, shared by the CPU and the CUDA registration: checks what would crash a kernel,
// brings the operands to one layout, and launches.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

#include "fastscore/group_norm_silu.h"
#include "tensors.h"

namespace fastscore {

using OptionalTensor = std::optional<at::Tensor>;

// What a launch gets. Nothing in it is empty.
struct GroupNormSiluCall {
  GroupNormSiluArgs args;  // on the CPU, the parameters are of the op dtype
  Layout layout;
  at::Tensor out;
  // backward: gradients of weight, bias, add, scale, shift, uninitialized, in the shape and dtype of the parameter;
  // undefined where it is absent.
  std::array<at::Tensor, 5> gradients;
};

// The kernels of a device.
struct GroupNormSiluLaunch {
  at::DeviceType device;
  void (*run)(const GroupNormSiluCall& call);
};
extern const GroupNormSiluLaunch group_norm_silu_cpu;

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_silu_fwd(
    const GroupNormSiluLaunch& launch, const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift, std::int64_t num_groups,
    double eps, bool silu);

// y, written to `out`, which is dense in the layout of x and may be x itself.
void group_norm_silu_into(const GroupNormSiluLaunch& launch, const at::Tensor& x, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& add, const OptionalTensor& scale,
                          const OptionalTensor& shift, std::int64_t num_groups, double eps, bool silu,
                          const at::Tensor& out);

// Gradients of x, weight, bias, add, scale, shift; those of absent parameters are empty.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> group_norm_silu_bwd(
    const GroupNormSiluLaunch& launch, const at::Tensor& grad_y, const at::Tensor& x, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift,
    const at::Tensor& mean, const at::Tensor& rstd, std::int64_t num_groups, bool silu);

at::Tensor group_norm_silu_jvp(const GroupNormSiluLaunch& launch, const at::Tensor& x, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& add, const OptionalTensor& scale,
                               const OptionalTensor& shift, const at::Tensor& mean, const at::Tensor& rstd,
                               const OptionalTensor& x_t, const OptionalTensor& weight_t, const OptionalTensor& bias_t,
                               const OptionalTensor& add_t, const OptionalTensor& scale_t,
                               const OptionalTensor& shift_t, std::int64_t num_groups, bool silu);

// One of the functions above with its first argument given: what is registered for a device.
template <const GroupNormSiluLaunch& launch, auto function>
struct GroupNormSiluOn;
template <const GroupNormSiluLaunch& launch, class Result, class... Arguments,
          Result (*function)(const GroupNormSiluLaunch&, Arguments...)>
struct GroupNormSiluOn<launch, function> {
  static Result call(Arguments... arguments) { return function(launch, arguments...); }
};

}  // namespace fastscore

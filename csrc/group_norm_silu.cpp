#include "group_norm_silu.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <initializer_list>

#include "checks.h"

namespace fastscore {
namespace {

using at::Tensor;

// One call, and what has to live until the kernels have been launched.
struct Operands {
  GroupNormSiluCall call;
  GroupNormSiluArgs& args = call.args;
  const Tensor& x;
  at::ScalarType real;
  c10::SmallVector<Tensor, 12> keep;

  Operands(const GroupNormSiluLaunch& launch, GroupNormSiluKind kind, const Tensor& x, std::int64_t num_groups,
           bool silu)
      : x(x) {
    TORCH_CHECK_VALUE(x.device().type() == launch.device, "group_norm_silu: x must be a ",
                      c10::DeviceTypeName(launch.device, true), " tensor, got one on ", x.device());
    TORCH_CHECK_VALUE(x.dim() >= 2, "group_norm_silu: x must have shape (N, C, ...), got ", x.sizes());
    TORCH_CHECK_VALUE(num_groups > 0 && x.size(1) % num_groups == 0,
                      "group_norm_silu: num_groups must divide the channels of x, ", x.size(1), ", got ", num_groups);
    args.kind = kind;
    args.dtype = dtype_of(x, "group_norm_silu", "x");
    args.silu = silu;
    args.batch = x.size(0);
    args.channels = x.size(1);
    args.groups = num_groups;
    args.pixels = 1;
    for (std::int64_t d = 2; d < x.dim(); ++d) args.pixels *= x.size(d);
    real = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const bool last = !has_layout(x, Layout::contiguous) && has_layout(x, Layout::channels_last);
    call.layout = last ? Layout::channels_last : Layout::contiguous;
    args.x = operand(x);
  }

  at::TensorOptions options() const { return x.options().dtype(real); }

  GroupNormSiluArgs::Operand operand(const Tensor& tensor) {
    const Tensor& use = keep.emplace_back(to_layout(tensor, call.layout));
    return {use.const_data_ptr(), args.batch == 1 ? args.channels * args.pixels : use.stride(0)};
  }

  GroupNormSiluArgs::Operand operand_like_x(const Tensor& tensor, const char* name) {
    TORCH_CHECK_VALUE(tensor.sizes() == x.sizes() && tensor.device() == x.device(), "group_norm_silu: ", name,
                      " must be like x, got shape ", tensor.sizes(), " on ", tensor.device());
    return operand(tensor.scalar_type() == x.scalar_type() ? tensor : tensor.to(x.scalar_type()));
  }

  GroupNormSiluArgs::Parameter parameter(const OptionalTensor& tensor, const char* name) {
    if (!tensor) return {};
    const auto sizes = tensor->sizes();
    const bool shared = sizes == at::IntArrayRef{args.channels};
    TORCH_CHECK_VALUE(shared || sizes == at::IntArrayRef({args.batch, args.channels}), "group_norm_silu: ", name,
                      " must have shape (C,) or (N, C) = (", args.batch, ", ", args.channels, "), got ", sizes);
    TORCH_CHECK_VALUE(tensor->device() == x.device(), "group_norm_silu: ", name, " must be on ", x.device(), ", got ",
                      tensor->device());
    // CUDA kernels read any dtype of 32 bits or less, which spares a conversion.
    const bool any = x.is_cuda() && real == at::kFloat && tensor->is_floating_point() && tensor->element_size() <= 4;
    const bool ready = (any || tensor->scalar_type() == real) && tensor->is_contiguous();
    const Tensor& use = ready ? *tensor : keep.emplace_back((any ? *tensor : tensor->to(real)).contiguous());
    return {use.const_data_ptr(), shared ? 0 : args.channels, dtype_of(use, "group_norm_silu", name)};
  }

  GroupNormSiluArgs::Parameters parameters(const OptionalTensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& add, const OptionalTensor& scale,
                                           const OptionalTensor& shift) {
    return {parameter(weight, "weight"), parameter(bias, "bias"), parameter(add, "add"), parameter(scale, "scale"),
            parameter(shift, "shift")};
  }

  void* statistic(const Tensor& tensor, const char* name) {
    TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef({args.batch, args.groups}) && tensor.scalar_type() == real &&
                          tensor.device() == x.device(),
                      "group_norm_silu: ", name, " must be what the forward op gave, got ", tensor.scalar_type(),
                      " of shape ", tensor.sizes(), " on ", tensor.device());
    return const_cast<void*>(keep.emplace_back(tensor.contiguous()).const_data_ptr());
  }

  // Kernels read an element of x before they write it, and anything else at any time.
  void check_out(const Tensor& out, std::initializer_list<const OptionalTensor*> parameters) const {
    check_like("group_norm_silu", "out", out, x);
    const bool dense = has_layout(out, call.layout) &&
                       (args.batch <= 1 || out.numel() == 0 || out.stride(0) == args.channels * args.pixels);
    TORCH_CHECK_VALUE(dense, "group_norm_silu: out must be dense in the layout of x, ",
                      call.layout == Layout::contiguous ? "contiguous" : "channels last", ", got strides ",
                      out.strides(), " for shape ", out.sizes());
    at::assert_no_partial_overlap(out, x);
    for (const OptionalTensor* parameter : parameters)
      if (*parameter) at::assert_no_overlap(out, **parameter);
  }

  // The result, allocated unless it is given; launches unless it is empty.
  Tensor run(const GroupNormSiluLaunch& launch, const OptionalTensor& out = std::nullopt) {
    call.out = out ? *out : new_result(x.sizes(), dense_strides(x.sizes(), call.layout), x.options());
    if (call.out.numel() == 0) return call.out;
    args.out = call.out.mutable_data_ptr();
    launch.run(call);
    return call.out;
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const GroupNormSiluLaunch& launch, const Tensor& x,
                                           const OptionalTensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& add, const OptionalTensor& scale,
                                           const OptionalTensor& shift, std::int64_t num_groups, double eps, bool silu,
                                           const OptionalTensor& out) {
  Operands operands(launch, GroupNormSiluKind::forward, x, num_groups, silu);
  operands.args.eps = eps;
  operands.args.value = operands.parameters(weight, bias, add, scale, shift);
  if (out) operands.check_out(*out, {&weight, &bias, &add, &scale, &shift});
  const Tensor mean = at::empty({x.size(0), num_groups}, operands.options());
  const Tensor rstd = at::empty({x.size(0), num_groups}, operands.options());
  operands.args.mean = mean.mutable_data_ptr();
  operands.args.rstd = rstd.mutable_data_ptr();
  const Tensor y = operands.run(launch, out);
  if (y.numel() == 0) {  // statistics of nothing, as the reference has them
    mean.zero_();
    rstd.fill_(1 / std::sqrt(eps));
  }
  return {y, mean, rstd};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> group_norm_silu_fwd(const GroupNormSiluLaunch& launch, const Tensor& x,
                                                       const OptionalTensor& weight, const OptionalTensor& bias,
                                                       const OptionalTensor& add, const OptionalTensor& scale,
                                                       const OptionalTensor& shift, std::int64_t num_groups, double eps,
                                                       bool silu) {
  return forward(launch, x, weight, bias, add, scale, shift, num_groups, eps, silu, std::nullopt);
}

void group_norm_silu_into(const GroupNormSiluLaunch& launch, const Tensor& x, const OptionalTensor& weight,
                          const OptionalTensor& bias, const OptionalTensor& add, const OptionalTensor& scale,
                          const OptionalTensor& shift, std::int64_t num_groups, double eps, bool silu,
                          const Tensor& out) {
  forward(launch, x, weight, bias, add, scale, shift, num_groups, eps, silu, out);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_silu_bwd(
    const GroupNormSiluLaunch& launch, const Tensor& grad_y, const Tensor& x, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift,
    const Tensor& mean, const Tensor& rstd, std::int64_t num_groups, bool silu) {
  Operands operands(launch, GroupNormSiluKind::backward, x, num_groups, silu);
  operands.args.other = operands.operand_like_x(grad_y, "grad_y");
  operands.args.value = operands.parameters(weight, bias, add, scale, shift);
  operands.args.mean = operands.statistic(mean, "mean");
  operands.args.rstd = operands.statistic(rstd, "rstd");
  auto& gradients = operands.call.gradients;
  std::size_t k = 0;
  for (const OptionalTensor* parameter : {&weight, &bias, &add, &scale, &shift}) {
    if (*parameter) gradients[k] = at::empty((*parameter)->sizes(), (*parameter)->options());
    ++k;
  }
  const Tensor grad_x = operands.run(launch);
  for (Tensor& gradient : gradients) {
    if (!gradient.defined())
      gradient = at::empty({0}, operands.options());
    else if (grad_x.numel() == 0)
      gradient.zero_();
  }
  return {grad_x, gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]};
}

Tensor group_norm_silu_jvp(const GroupNormSiluLaunch& launch, const Tensor& x, const OptionalTensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& add, const OptionalTensor& scale,
                           const OptionalTensor& shift, const Tensor& mean, const Tensor& rstd,
                           const OptionalTensor& x_t, const OptionalTensor& weight_t, const OptionalTensor& bias_t,
                           const OptionalTensor& add_t, const OptionalTensor& scale_t, const OptionalTensor& shift_t,
                           std::int64_t num_groups, bool silu) {
  Operands operands(launch, GroupNormSiluKind::jvp, x, num_groups, silu);
  // A CUDA kernel reads no tangent that is not there.
  if (x_t || !x.is_cuda())
    operands.args.other =
        operands.operand_like_x(x_t ? *x_t : at::zeros({1}, x.options()).expand_as(x), "the tangent of x");
  operands.args.value = operands.parameters(weight, bias, add, scale, shift);
  operands.args.tangent = operands.parameters(weight_t, bias_t, add_t, scale_t, shift_t);
  operands.args.mean = operands.statistic(mean, "mean");
  operands.args.rstd = operands.statistic(rstd, "rstd");
  return operands.run(launch);
}

}  // namespace fastscore

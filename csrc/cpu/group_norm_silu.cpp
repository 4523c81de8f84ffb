#include "group_norm_silu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/simd/group_norm_silu.h"
#include "tensors.h"

namespace fastscore {
namespace {

LaunchCounter forward_launches("group_norm_silu_fwd"), backward_launches("group_norm_silu_bwd"),
    jvp_launches("group_norm_silu_jvp");

constexpr std::int64_t grain = 16384;  // elements that one thread should have before a second is worth waking
constexpr std::int64_t full_row = 64;  // channels-last rows shorter than this are folded

// One call: what the kernels get, and what has to live until they are done.
struct Call {
  GroupNormSiluCpuArgs args;
  Layout layout;
  at::ScalarType real;
  c10::SmallVector<at::Tensor, 12> keep;

  Call(GroupNormSiluKind kind, const at::Tensor& x, std::int64_t num_groups, bool silu) {
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
    layout = last ? Layout::channels_last : Layout::contiguous;
    args.x = operand(x);
  }

  at::TensorOptions options() const { return at::TensorOptions().dtype(real); }

  GroupNormSiluArgs::Operand operand(const at::Tensor& tensor) {
    const at::Tensor& use = keep.emplace_back(to_layout(tensor, layout));
    return {use.const_data_ptr(), args.batch == 1 ? args.channels * args.pixels : use.stride(0)};
  }

  GroupNormSiluArgs::Operand operand_like_x(const at::Tensor& tensor, const at::Tensor& x, const char* name) {
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
    TORCH_CHECK_VALUE(tensor->device().is_cpu(), "group_norm_silu: ", name, " must be on cpu, got ", tensor->device());
    const bool ready = tensor->scalar_type() == real && tensor->is_contiguous();
    const at::Tensor& use = ready ? *tensor : keep.emplace_back(tensor->to(real).contiguous());
    return {use.const_data_ptr(), shared ? 0 : args.channels};
  }

  GroupNormSiluArgs::Parameters parameters(const OptionalTensor& weight, const OptionalTensor& bias,
                                           const OptionalTensor& add, const OptionalTensor& scale,
                                           const OptionalTensor& shift) {
    return {parameter(weight, "weight"), parameter(bias, "bias"), parameter(add, "add"), parameter(scale, "scale"),
            parameter(shift, "shift")};
  }

  void* statistic(const at::Tensor& tensor, const char* name) {
    TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef({args.batch, args.groups}) && tensor.scalar_type() == real &&
                          tensor.device().is_cpu(),
                      "group_norm_silu: ", name, " must be what the forward op gave, got ", tensor.scalar_type(),
                      " of shape ", tensor.sizes());
    return const_cast<void*>(keep.emplace_back(tensor.contiguous()).const_data_ptr());
  }

  void* scratch(at::IntArrayRef sizes, at::ScalarType dtype) {
    return keep.emplace_back(at::empty(sizes, at::TensorOptions().dtype(dtype))).mutable_data_ptr();
  }

  // Allocates the result and the scratch, and runs.
  at::Tensor run(const at::Tensor& x, LaunchCounter& launches) {
    const at::Tensor out = at::empty_strided(x.sizes(), dense_strides(x.sizes(), layout), x.options());
    if (out.numel() == 0) return out;
    args.out = out.mutable_data_ptr();
    // Samples of one pixel are the same in both layouts, and vectors run along channels.
    if (args.pixels == 1) layout = Layout::channels_last;
    if (layout == Layout::channels_last)
      while (args.fold * args.channels < full_row && args.pixels % (2 * args.fold) == 0) args.fold *= 2;
    args.lane_channels = args.fold * args.channels;
    args.coefficients = scratch({args.batch, group_norm_silu_coefficients, args.lane_channels}, real);
    if (args.kind != GroupNormSiluKind::forward || layout == Layout::channels_last)
      args.sums = static_cast<double*>(scratch({args.batch, 3, args.channels}, at::kDouble));
    layout == Layout::channels_last ? run_channels_last() : run_contiguous();
    launches.cpu();
    return out;
  }

  void run_contiguous() {
    const auto kernel = FASTSCORE_KERNEL(group_norm_silu_contiguous);
    const std::int64_t size = args.channels / args.groups * args.pixels;
    at::parallel_for(0, args.batch * args.groups, std::max<std::int64_t>(grain / size, 1),
                     [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  }

  void run_channels_last() {
    const std::int64_t rows = args.pixels / args.fold;
    args.rows = std::min(rows, std::clamp<std::int64_t>(8192 / args.lane_channels, 32, 64));
    args.blocks = (rows + args.rows - 1) / args.rows;
    args.partial = scratch({args.batch, args.blocks, 3, args.lane_channels}, real);
    const auto prepare = FASTSCORE_KERNEL(group_norm_silu_channels_last_prepare);
    const auto sum = FASTSCORE_KERNEL(group_norm_silu_channels_last_sum);
    const auto finish = FASTSCORE_KERNEL(group_norm_silu_channels_last_finish);
    const auto write = FASTSCORE_KERNEL(group_norm_silu_channels_last_write);
    const std::int64_t size = args.channels * args.pixels, threads = at::get_num_threads();
    if (args.batch % threads == 0 || args.batch >= 4 * threads || size * args.batch <= grain) {
      // Sample by sample, so that a sample is still in the cache when it is written.
      at::parallel_for(0, args.batch, std::max<std::int64_t>(grain / size, 1),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t n = begin; n < end; ++n) {
                           prepare(args, n, n + 1);
                           sum(args, n * args.blocks, (n + 1) * args.blocks);
                           finish(args, n, n + 1);
                           write(args, n * args.blocks, (n + 1) * args.blocks);
                         }
                       });
      return;
    }
    // Too few samples to share out: all threads work on the blocks of all samples.
    const std::int64_t block_grain = std::max<std::int64_t>(grain / (args.rows * args.lane_channels), 1);
    const auto phase = [&](auto kernel, std::int64_t count, std::int64_t phase_grain) {
      at::parallel_for(0, count, phase_grain, [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
    };
    prepare(args, 0, args.batch);
    phase(sum, args.batch * args.blocks, block_grain);
    phase(finish, args.batch, 1);
    phase(write, args.batch * args.blocks, block_grain);
  }

  // The gradient of a parameter: term(n, c), summed over n where the samples share it; in the parameter's shape and
  // dtype.
  template <class Term>
  at::Tensor gradient(const OptionalTensor& parameter, Term term) const {
    if (!parameter) return at::empty({0}, options());
    const bool shared = parameter->dim() == 1;
    const at::Tensor total = at::zeros(parameter->sizes(), at::kDouble);
    double* to = total.mutable_data_ptr<double>();
    if (args.sums != nullptr)
      for (std::int64_t n = 0; n < args.batch; ++n)
        for (std::int64_t c = 0; c < args.channels; ++c) to[shared ? c : n * args.channels + c] += term(n, c);
    return total.to(parameter->scalar_type());
  }

  double sum(int k, std::int64_t n, std::int64_t c) const { return args.sums[(n * 3 + k) * args.channels + c]; }

  double number(GroupNormSiluArgs::Parameter p, std::int64_t n, std::int64_t c, double otherwise) const {
    if (p.data == nullptr) return otherwise;
    const std::int64_t at = n * p.stride + c;
    return real == at::kDouble ? static_cast<const double*>(p.data)[at] : static_cast<const float*>(p.data)[at];
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_silu_fwd_cpu(
    const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& add,
    const OptionalTensor& scale, const OptionalTensor& shift, std::int64_t num_groups, double eps, bool silu) {
  Call call(GroupNormSiluKind::forward, x, num_groups, silu);
  call.args.eps = eps;
  call.args.value = call.parameters(weight, bias, add, scale, shift);
  const at::Tensor mean = at::empty({x.size(0), num_groups}, call.options());
  const at::Tensor rstd = at::empty({x.size(0), num_groups}, call.options());
  call.args.mean = mean.mutable_data_ptr();
  call.args.rstd = rstd.mutable_data_ptr();
  const at::Tensor y = call.run(x, forward_launches);
  if (y.numel() == 0) {  // statistics of nothing, as the reference has them
    mean.zero_();
    rstd.fill_(1 / std::sqrt(eps));
  }
  return {y, mean, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> group_norm_silu_bwd_cpu(
    const at::Tensor& grad_y, const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift, const at::Tensor& mean,
    const at::Tensor& rstd, std::int64_t num_groups, bool silu) {
  Call call(GroupNormSiluKind::backward, x, num_groups, silu);
  call.args.other = call.operand_like_x(grad_y, x, "grad_y");
  const auto& p = call.args.value = call.parameters(weight, bias, add, scale, shift);
  call.args.mean = call.statistic(mean, "mean");
  call.args.rstd = call.statistic(rstd, "rstd");
  const at::Tensor grad_x = call.run(x, backward_launches);

  // v = (xhat weight + bias) (1 + scale) + shift; see GroupNormSiluCpuArgs for the sums.
  const auto gain = [&](auto n, auto c) { return 1 + call.number(p.scale, n, c, 0); };
  const auto grad_weight = [&](auto n, auto c) { return gain(n, c) * call.sum(1, n, c); };
  const auto grad_bias = [&](auto n, auto c) { return gain(n, c) * call.sum(0, n, c); };
  const auto grad_scale = [&](auto n, auto c) {
    return call.number(p.weight, n, c, 1) * call.sum(1, n, c) + call.number(p.bias, n, c, 0) * call.sum(0, n, c);
  };
  const auto grad_shift = [&](auto n, auto c) { return call.sum(0, n, c); };
  const auto grad_add = [&](auto n, auto c) { return call.sum(2, n, c); };
  return {grad_x,
          call.gradient(weight, grad_weight),
          call.gradient(bias, grad_bias),
          call.gradient(add, grad_add),
          call.gradient(scale, grad_scale),
          call.gradient(shift, grad_shift)};
}

at::Tensor group_norm_silu_jvp_cpu(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& add, const OptionalTensor& scale, const OptionalTensor& shift,
                                   const at::Tensor& mean, const at::Tensor& rstd, const OptionalTensor& x_t,
                                   const OptionalTensor& weight_t, const OptionalTensor& bias_t,
                                   const OptionalTensor& add_t, const OptionalTensor& scale_t,
                                   const OptionalTensor& shift_t, std::int64_t num_groups, bool silu) {
  Call call(GroupNormSiluKind::jvp, x, num_groups, silu);
  call.args.other = call.operand_like_x(x_t ? *x_t : at::zeros({1}, x.options()).expand_as(x), x, "the tangent of x");
  call.args.value = call.parameters(weight, bias, add, scale, shift);
  call.args.tangent = call.parameters(weight_t, bias_t, add_t, scale_t, shift_t);
  call.args.mean = call.statistic(mean, "mean");
  call.args.rstd = call.statistic(rstd, "rstd");
  return call.run(x, jvp_launches);
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("group_norm_silu_fwd", fastscore::group_norm_silu_fwd_cpu);
  m.impl("group_norm_silu_bwd", fastscore::group_norm_silu_bwd_cpu);
  m.impl("group_norm_silu_jvp", fastscore::group_norm_silu_jvp_cpu);
}

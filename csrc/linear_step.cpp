#include "linear_step.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty_strided.h>

#include "tensors.h"

namespace fastscore {
namespace {

constexpr std::int64_t max_channels = 256;  // of the channels-last path; more are rearranged

using OptionalTensor = std::optional<at::Tensor>;

// What would crash a kernel; fastscore/ops/linear_step.py says the same with more words.
void check(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients, const OptionalTensor& noise,
           const OptionalTensor& rng, const OptionalTensor& samples) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "linear_step: x must have a batch dimension, got shape ()");
  TORCH_CHECK_VALUE(history.size() <= max_history, "linear_step: history must hold at most ", max_history,
                    " tensors, got ", history.size());
  const auto same_as_x = [&](const at::Tensor& t, const char* name) {
    TORCH_CHECK_VALUE(t.sizes() == x.sizes(), "linear_step: ", name, " must have the shape of x, ", x.sizes(), ", got ",
                      t.sizes());
    TORCH_CHECK_TYPE(t.scalar_type() == x.scalar_type(), "linear_step: ", name, " must have the dtype of x, ",
                     x.scalar_type(), ", got ", t.scalar_type());
    TORCH_CHECK_VALUE(t.device() == x.device(), "linear_step: ", name, " must be on ", x.device(), ", got ",
                      t.device());
  };
  for (const at::Tensor& h : history) same_as_x(h, "history");
  const auto real = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto columns = static_cast<std::int64_t>(history.size()) + 2;
  TORCH_CHECK_TYPE(coefficients.scalar_type() == real, "linear_step: coefficients must be ", real, " for ",
                   x.scalar_type(), " x, got ", coefficients.scalar_type());
  TORCH_CHECK_VALUE(coefficients.device() == x.device(), "linear_step: coefficients must be on ", x.device(), ", got ",
                    coefficients.device());
  const bool row = coefficients.dim() == 1 && coefficients.size(0) == columns;
  const bool table = coefficients.dim() == 2 && coefficients.size(0) == x.size(0) && coefficients.size(1) == columns;
  TORCH_CHECK_VALUE(row || table, "linear_step: coefficients must have shape (", columns, ",) or (", x.size(0), ", ",
                    columns, "), got ", coefficients.sizes());
  if (noise) {
    same_as_x(*noise, "noise");
    TORCH_CHECK_VALUE(!rng && !samples, "linear_step: give noise, or rng and samples, not both");
  }
  TORCH_CHECK_VALUE(rng.has_value() == samples.has_value(), "linear_step: rng and samples go together");
  if (rng) {
    TORCH_CHECK_TYPE(rng->scalar_type() == at::kLong && samples->scalar_type() == at::kLong,
                     "linear_step: rng and samples must be int64, got ", rng->scalar_type(), " and ",
                     samples->scalar_type());
    TORCH_CHECK_VALUE(rng->dim() == 1 && rng->size(0) == 2, "linear_step: rng must have shape (2,), got ",
                      rng->sizes());
    TORCH_CHECK_VALUE(samples->dim() == 1 && samples->size(0) == x.size(0), "linear_step: samples must have shape (",
                      x.size(0), ",), got ", samples->sizes());
    TORCH_CHECK_VALUE(rng->device() == x.device() && samples->device() == x.device(),
                      "linear_step: rng and samples must be on ", x.device(), ", got ", rng->device(), " and ",
                      samples->device());
  }
}

// Runs the kernel; `out` has one of the two layouts and may be x itself.
void run(const at::Tensor& out, const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
         const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples, Layout layout,
         LinearStepLaunch launch) {
  LinearStepArgs args;
  args.dtype = dtype_of(x, "linear_step", "x");
  args.batch = x.size(0);
  args.channels = layout == Layout::channels_last ? x.size(1) : 1;
  args.pixels = x.numel() / (args.batch * args.channels);
  const std::int64_t sample_size = args.pixels * args.channels;
  bool flat = true;  // all samples of all operands lie one behind the other

  c10::SmallVector<at::Tensor, 4> keep;  // copies live until the kernel has been launched
  const auto operand = [&](const at::Tensor& tensor) {
    const at::Tensor* use = &tensor;
    if (!has_layout(tensor, layout)) use = &keep.emplace_back(to_layout(tensor, layout));
    const std::int64_t stride = args.batch == 1 ? sample_size : use->stride(0);
    flat &= stride == sample_size;
    return LinearStepArgs::Operand{use->const_data_ptr(), stride};
  };
  args.x = operand(x);
  for (const at::Tensor& h : history) args.terms[args.term_count++] = operand(h);
  if (noise) args.terms[args.term_count++] = operand(*noise);
  args.noise_given = noise.has_value();
  const auto target = operand(out);
  args.out = const_cast<void*>(target.data);
  args.out_stride = target.stride;

  const at::Tensor rows = coefficients.stride(-1) == 1 ? coefficients : coefficients.contiguous();
  args.coefficients = rows.const_data_ptr();
  args.coefficient_stride = rows.dim() == 2 ? rows.stride(0) : 0;
  args.coefficient_count = static_cast<int>(rows.size(-1));
  at::Tensor state, index;
  if (rng) {
    state = rng->contiguous();
    index = samples->contiguous();
    args.rng = state.const_data_ptr<std::int64_t>();
    args.samples = index.const_data_ptr<std::int64_t>();
  } else if (flat && args.coefficient_stride == 0) {
    // Nothing tells the samples apart: they are one.
    args.pixels = x.numel();
    args.channels = args.batch = 1;
  }
  launch(args, out);
}

}  // namespace

at::Tensor linear_step(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                       const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                       LinearStepLaunch launch) {
  check(x, history, coefficients, noise, rng, samples);
  const bool dense = x.numel() > 0 && x.is_non_overlapping_and_dense();
  const at::Tensor out = dense ? at::empty_strided(x.sizes(), x.strides(), x.options())
                               : at::empty_strided(x.sizes(), dense_strides(x.sizes(), Layout::contiguous), x.options());
  if (x.numel() == 0) return out;
  if (has_layout(out, Layout::contiguous)) {
    run(out, x, history, coefficients, noise, rng, samples, Layout::contiguous, launch);
  } else if (has_layout(out, Layout::channels_last) && x.size(1) <= max_channels) {
    run(out, x, history, coefficients, noise, rng, samples, Layout::channels_last, launch);
  } else {
    const auto strides = dense_strides(x.sizes(), Layout::contiguous);
    const at::Tensor buffer = at::empty_strided(x.sizes(), strides, x.options());
    run(buffer, x, history, coefficients, noise, rng, samples, Layout::contiguous, launch);
    out.copy_(buffer);
  }
  return out;
}

void linear_step_(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                  const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                  LinearStepLaunch launch) {
  check(x, history, coefficients, noise, rng, samples);
  at::assert_no_internal_overlap(x);
  for (const at::Tensor& h : history) at::assert_no_partial_overlap(x, h);
  if (noise) at::assert_no_partial_overlap(x, *noise);
  if (x.numel() == 0) return;
  if (has_layout(x, Layout::contiguous)) {
    run(x, x, history, coefficients, noise, rng, samples, Layout::contiguous, launch);
  } else if (has_layout(x, Layout::channels_last) && x.size(1) <= max_channels) {
    run(x, x, history, coefficients, noise, rng, samples, Layout::channels_last, launch);
  } else {
    const at::Tensor buffer = to_layout(x, Layout::contiguous);
    run(buffer, buffer, history, coefficients, noise, rng, samples, Layout::contiguous, launch);
    x.copy_(buffer);
  }
}

}  // namespace fastscore

#include "linear_step.h"

#include <ATen/MemoryOverlap.h>

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "linear_step";
constexpr std::int64_t max_channels = 256;  // of the channels-last path; more are rearranged

using OptionalTensor = std::optional<at::Tensor>;

void check(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients, const OptionalTensor& noise,
           const OptionalTensor& rng, const OptionalTensor& samples) {
  TORCH_CHECK_VALUE(x.dim() >= 1, op, ": x must have a batch dimension, got shape ()");
  TORCH_CHECK_VALUE(history.size() <= max_history, op, ": history must hold at most ", max_history, " tensors, got ",
                    history.size());
  for (const at::Tensor& h : history) check_like(op, "history", h, x);
  check_coefficients(op, coefficients, x, static_cast<std::int64_t>(history.size()) + 2);
  check_noise(op, x, noise, rng, samples);
}

// Runs the kernel; `out` has one of the two layouts and may be x itself.
void run(const at::Tensor& out, const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
         const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples, Layout layout,
         LinearStepLaunch launch) {
  LinearStepArgs args;
  args.dtype = dtype_of(x, op, "x");
  args.batch = x.size(0);
  args.channels = layout == Layout::channels_last ? x.size(1) : 1;
  args.pixels = x.numel() / (args.batch * args.channels);
  const std::int64_t sample_size = args.pixels * args.channels;
  bool flat = true;  // all samples of all operands lie one behind the other

  c10::SmallVector<at::Tensor, max_history> keep;  // copies live until the kernel has been launched
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

// Picks the layout by `out`, which may be x itself.
void compute(const at::Tensor& out, const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
             const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
             LinearStepLaunch launch) {
  if (x.numel() == 0) return;
  if (has_layout(out, Layout::contiguous)) {
    run(out, x, history, coefficients, noise, rng, samples, Layout::contiguous, launch);
  } else if (has_layout(out, Layout::channels_last) && x.size(1) <= max_channels) {
    run(out, x, history, coefficients, noise, rng, samples, Layout::channels_last, launch);
  } else {
    const at::Tensor buffer = x.new_empty_strided(x.sizes(), dense_strides(x.sizes(), Layout::contiguous));
    run(buffer, x, history, coefficients, noise, rng, samples, Layout::contiguous, launch);
    out.copy_(buffer);
  }
}

}  // namespace

at::Tensor linear_step(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                       const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                       LinearStepLaunch launch) {
  check(x, history, coefficients, noise, rng, samples);
  const at::Tensor out = new_result_like(x);
  compute(out, x, history, coefficients, noise, rng, samples, launch);
  return out;
}

void linear_step_(const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                  const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                  LinearStepLaunch launch) {
  check(x, history, coefficients, noise, rng, samples);
  at::assert_no_internal_overlap(x);
  c10::SmallVector<at::Tensor, max_history> terms;
  for (const at::Tensor& h : history) terms.push_back(safe_to_read(h, x));
  OptionalTensor z;
  if (noise) z = safe_to_read(*noise, x);
  compute(x, x, terms, coefficients, z, rng, samples, launch);
}

}  // namespace fastscore

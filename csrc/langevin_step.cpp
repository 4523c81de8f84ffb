#include "langevin_step.h"

#include <ATen/MemoryOverlap.h>

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "langevin_step";
constexpr std::int64_t max_channels = 256;  // of the channels-last path; more are rearranged

using OptionalTensor = std::optional<at::Tensor>;

void check(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients, const OptionalTensor& noise,
           const OptionalTensor& rng, const OptionalTensor& samples) {
  TORCH_CHECK_VALUE(x.dim() >= 1, op, ": x must have a batch dimension, got shape ()");
  check_like(op, "h", h, x);
  check_coefficients(op, coefficients, x, 3);
  check_noise(op, x, noise, rng, samples);
  TORCH_CHECK_VALUE(noise || rng, op, ": noise must be given, or rng and samples");
}

// Runs the kernel; `out` has the layout given and may be x itself.
void run(const at::Tensor& out, const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
         const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples, bool per_sample,
         Layout layout, LangevinStepLaunch launch) {
  LangevinStepArgs args;
  args.dtype = dtype_of(x, op, "x");
  args.batch = x.size(0);
  args.channels = layout == Layout::channels_last ? x.size(1) : 1;
  args.pixels = x.numel() / (args.batch * args.channels);
  const std::int64_t size = args.pixels * args.channels;
  if (x.dim() > 2 && x.size(1) <= max_channels && x.size(1) < size) args.planes = x.size(1);
  args.per_sample = per_sample;

  c10::SmallVector<at::Tensor, 3> keep;  // rearranged operands
  const auto operand = [&](const at::Tensor& tensor) {
    const at::Tensor* use = &tensor;
    if (!has_layout(tensor, layout)) use = &keep.emplace_back(to_layout(tensor, layout));
    return LangevinStepArgs::Operand{use->const_data_ptr(), args.batch == 1 ? size : use->stride(0)};
  };
  args.x = operand(x);
  args.h = operand(h);
  if (noise) args.noise = operand(*noise);
  args.out = out.mutable_data_ptr();
  args.out_stride = args.batch == 1 ? size : out.stride(0);

  const at::Tensor rows = coefficients.stride(-1) == 1 ? coefficients : coefficients.contiguous();
  args.coefficients = rows.const_data_ptr();
  args.coefficient_stride = rows.dim() == 2 ? rows.stride(0) : 0;
  at::Tensor state, index;
  if (rng) {
    state = rng->contiguous();
    index = samples->contiguous();
    args.rng = state.const_data_ptr<std::int64_t>();
    args.samples = index.const_data_ptr<std::int64_t>();
  }
  launch(args, out);
}

}  // namespace

at::Tensor langevin_step(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                         const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                         bool per_sample, LangevinStepLaunch launch) {
  check(x, h, coefficients, noise, rng, samples);
  const at::Tensor out = new_result_like(x);
  if (x.numel() == 0) return out;
  if (has_layout(out, Layout::contiguous)) {
    run(out, x, h, coefficients, noise, rng, samples, per_sample, Layout::contiguous, launch);
  } else if (has_layout(out, Layout::channels_last) && x.size(1) <= max_channels) {
    run(out, x, h, coefficients, noise, rng, samples, per_sample, Layout::channels_last, launch);
  } else {
    const at::Tensor buffer = x.new_empty_strided(x.sizes(), dense_strides(x.sizes(), Layout::contiguous));
    run(buffer, x, h, coefficients, noise, rng, samples, per_sample, Layout::contiguous, launch);
    out.copy_(buffer);
  }
  return out;
}

void langevin_step_(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                    const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                    bool per_sample, LangevinStepLaunch launch) {
  check(x, h, coefficients, noise, rng, samples);
  at::assert_no_internal_overlap(x);
  const at::Tensor g = safe_to_read(h, x);
  OptionalTensor z;
  if (noise) z = safe_to_read(*noise, x);
  if (x.numel() == 0) return;
  if (has_layout(x, Layout::contiguous)) {
    run(x, x, g, coefficients, z, rng, samples, per_sample, Layout::contiguous, launch);
  } else if (has_layout(x, Layout::channels_last) && x.size(1) <= max_channels) {
    run(x, x, g, coefficients, z, rng, samples, per_sample, Layout::channels_last, launch);
  } else {
    const at::Tensor buffer = to_layout(x, Layout::contiguous);
    run(buffer, buffer, g, coefficients, z, rng, samples, per_sample, Layout::contiguous, launch);
    x.copy_(buffer);
  }
}

}  // namespace fastscore

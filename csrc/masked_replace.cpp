#include "masked_replace.h"

#include <ATen/MemoryOverlap.h>

#include "checks.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "masked_replace_";
constexpr std::int64_t max_channels = 256;  // of the channels-last path; more are rearranged

using OptionalTensor = std::optional<at::Tensor>;

void check(const at::Tensor& x, const at::Tensor& known, const at::Tensor& mask, const at::Tensor& coefficients,
           const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples) {
  TORCH_CHECK_VALUE(x.dim() >= 1, op, ": x must have a batch dimension, got shape ()");
  check_like(op, "known", known, x);
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, op, ": mask must be bool, got ", mask.scalar_type());
  TORCH_CHECK_VALUE(mask.sizes() == x.sizes(), op, ": mask must have the shape of x, ", x.sizes(), ", got ",
                    mask.sizes());
  TORCH_CHECK_VALUE(mask.device() == x.device(), op, ": mask must be on the device of x, ", x.device(), ", got ",
                    mask.device());
  check_coefficients(op, coefficients, x, 2);
  check_noise(op, x, noise, rng, samples);
}

// Runs the kernel on x, which has one of the two layouts.
void run(const at::Tensor& x, const at::Tensor& known, const at::Tensor& mask, const at::Tensor& coefficients,
         const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples, Layout layout,
         MaskedReplaceLaunch launch) {
  MaskedReplaceArgs args;
  args.dtype = dtype_of(x, op, "x");
  args.batch = x.size(0);
  args.channels = layout == Layout::channels_last ? x.size(1) : 1;
  args.pixels = x.numel() / (args.batch * args.channels);

  c10::SmallVector<at::Tensor, 3> keep;  // copies live until the kernel has been launched
  const auto operand = [&](const at::Tensor& tensor) {
    const at::Tensor* use = &tensor;
    if (!has_layout(tensor, layout)) use = &keep.emplace_back(to_layout(tensor, layout));
    return MaskedReplaceArgs::Operand{use->const_data_ptr(), use->stride(0)};
  };
  args.x = x.mutable_data_ptr();
  args.x_stride = x.stride(0);
  args.known = operand(known);
  args.mask = operand(mask);
  if (noise) args.noise = operand(*noise);

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
  launch(args, x);
}

}  // namespace

void masked_replace_(const at::Tensor& x, const at::Tensor& known, const at::Tensor& mask,
                     const at::Tensor& coefficients, const OptionalTensor& noise, const OptionalTensor& rng,
                     const OptionalTensor& samples, MaskedReplaceLaunch launch) {
  check(x, known, mask, coefficients, noise, rng, samples);
  at::assert_no_internal_overlap(x);
  if (x.numel() == 0) return;
  const at::Tensor image = safe_to_read(known, x);
  OptionalTensor z;
  if (noise) z = safe_to_read(*noise, x);
  if (has_layout(x, Layout::contiguous)) {
    run(x, image, mask, coefficients, z, rng, samples, Layout::contiguous, launch);
  } else if (has_layout(x, Layout::channels_last) && x.size(1) <= max_channels) {
    run(x, image, mask, coefficients, z, rng, samples, Layout::channels_last, launch);
  } else {
    const at::Tensor buffer = to_layout(x, Layout::contiguous);
    run(buffer, image, mask, coefficients, z, rng, samples, Layout::contiguous, launch);
    x.copy_(buffer);
  }
}

}  // namespace fastscore

#include "cpu/langevin_step.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/simd/langevin_step.h"
#include "tensors.h"

namespace fastscore {
namespace {

constexpr const char* op = "langevin_step";
constexpr std::int64_t max_channels = step_tile / 4;  // of the channels-last path; more are rearranged

LaunchCounter launches("langevin_step");

using OptionalTensor = std::optional<at::Tensor>;

void check(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients, const OptionalTensor& noise,
           const OptionalTensor& rng, const OptionalTensor& samples) {
  TORCH_CHECK_VALUE(x.device().is_cpu(), op, ": x must be a CPU tensor, got one on ", x.device());
  TORCH_CHECK_VALUE(x.dim() >= 1, op, ": x must have a batch dimension, got shape ()");
  check_like(op, "h", h, x);
  check_coefficients(op, coefficients, x, 3);
  check_noise(op, x, noise, rng, samples);
  TORCH_CHECK_VALUE(noise || rng, op, ": noise must be given, or rng and samples");
}

// Step and width of every sample from the tile sums, added up in order of the tiles. `row(b)` gives p, q, tau.
template <class Row>
std::vector<double> weights_from(const std::vector<double>& sums, std::int64_t batch, bool per_sample, Row row) {
  const std::size_t tiles = sums.size() / 2 / batch;
  std::vector<double> norms(2 * batch), weights(2 * batch);
  double total_z = 0, total_g = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    double z2 = 0, g2 = 0;
    for (std::size_t t = b * tiles; t < (b + 1) * tiles; ++t) {
      z2 += sums[2 * t];
      g2 += sums[2 * t + 1];
    }
    total_z += norms[2 * b] = std::sqrt(z2);
    total_g += norms[2 * b + 1] = std::sqrt(g2);
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    const double z = per_sample ? norms[2 * b] : total_z, g = per_sample ? norms[2 * b + 1] : total_g;
    const double ratio = g == 0 ? 0 : z / g, tau = static_cast<double>(row(b)[2]);
    weights[2 * b] = tau * ratio * ratio;
    weights[2 * b + 1] = std::sqrt(2 * tau) * ratio;
  }
  return weights;
}

// Runs both passes; `out` has the layout given and may be x itself.
void run(const at::Tensor& out, const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
         const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples, bool per_sample,
         Layout layout) {
  LangevinStepArgs args;
  args.dtype = dtype_of(x, op, "x");
  args.batch = x.size(0);
  args.channels = layout == Layout::channels_last ? x.size(1) : 1;
  args.pixels = x.numel() / (args.batch * args.channels);
  const std::int64_t size = args.pixels * args.channels;

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

  const std::int64_t pixels = step_tile / args.channels / 4 * 4;
  const StepTiles tiles{pixels, (args.pixels + pixels - 1) / pixels};
  const std::int64_t logical = (size + step_tile - 1) / step_tile;  // tiles of the first pass in a sample
  const std::int64_t tile = std::min(size, step_tile);
  // Tiles that one thread should have before a second is worth waking.
  const std::int64_t grain = std::max<std::int64_t>((rng ? 8192 : 32768) / tile, 1);
  std::vector<double> sums(2 * args.batch * logical);
  const auto norms = FASTSCORE_KERNEL(langevin_norms);
  at::parallel_for(0, args.batch * logical, grain,
                   [&](std::int64_t begin, std::int64_t end) { norms(args, logical, sums.data(), begin, end); });

  const auto weights =
      args.dtype == Dtype::f64
          ? weights_from(sums, args.batch, per_sample,
                         [&](std::int64_t b) {
                           return static_cast<const double*>(args.coefficients) + b * args.coefficient_stride;
                         })
          : weights_from(sums, args.batch, per_sample, [&](std::int64_t b) {
              return static_cast<const float*>(args.coefficients) + b * args.coefficient_stride;
            });
  const auto update = FASTSCORE_KERNEL(langevin_update);
  at::parallel_for(0, args.batch * tiles.per_sample, grain,
                   [&](std::int64_t begin, std::int64_t end) { update(args, tiles, weights.data(), begin, end); });
  launches.cpu();
}

void langevin_step_cpu_(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                        const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                        bool per_sample) {
  check(x, h, coefficients, noise, rng, samples);
  at::assert_no_internal_overlap(x);
  const at::Tensor g = safe_to_read(h, x);
  OptionalTensor z;
  if (noise) z = safe_to_read(*noise, x);
  if (x.numel() == 0) return;
  if (has_layout(x, Layout::contiguous)) {
    run(x, x, g, coefficients, z, rng, samples, per_sample, Layout::contiguous);
  } else if (has_layout(x, Layout::channels_last) && x.size(1) <= max_channels) {
    run(x, x, g, coefficients, z, rng, samples, per_sample, Layout::channels_last);
  } else {
    const at::Tensor buffer = to_layout(x, Layout::contiguous);
    run(buffer, buffer, g, coefficients, z, rng, samples, per_sample, Layout::contiguous);
    x.copy_(buffer);
  }
}

}  // namespace

at::Tensor langevin_step_cpu(const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients,
                             const OptionalTensor& noise, const OptionalTensor& rng, const OptionalTensor& samples,
                             bool per_sample) {
  check(x, h, coefficients, noise, rng, samples);
  const auto contiguous = dense_strides(x.sizes(), Layout::contiguous);
  const bool dense = x.numel() > 0 && x.is_non_overlapping_and_dense();
  const at::Tensor out = x.new_empty_strided(x.sizes(), dense ? x.strides() : at::IntArrayRef(contiguous));
  if (x.numel() == 0) return out;
  if (has_layout(out, Layout::contiguous)) {
    run(out, x, h, coefficients, noise, rng, samples, per_sample, Layout::contiguous);
  } else if (has_layout(out, Layout::channels_last) && x.size(1) <= max_channels) {
    run(out, x, h, coefficients, noise, rng, samples, per_sample, Layout::channels_last);
  } else {
    const at::Tensor buffer = x.new_empty_strided(x.sizes(), contiguous);
    run(buffer, x, h, coefficients, noise, rng, samples, per_sample, Layout::contiguous);
    out.copy_(buffer);
  }
  return out;
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("langevin_step", fastscore::langevin_step_cpu);
  m.impl("langevin_step_",
         [](at::Tensor x, const at::Tensor& h, const at::Tensor& coefficients, const std::optional<at::Tensor>& noise,
            const std::optional<at::Tensor>& rng, const std::optional<at::Tensor>& samples,
            bool per_sample) { fastscore::langevin_step_cpu_(x, h, coefficients, noise, rng, samples, per_sample); });
}

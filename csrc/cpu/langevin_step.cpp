#include "langevin_step.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/simd/langevin_step.h"

namespace fastscore {
namespace {

LaunchCounter launches("langevin_step");

// Step and width of every sample from the tile sums, added up in order of the tiles. `row(b)` gives p, q, tau.
template <class Row>
std::vector<double> weights_from(const std::vector<double>& sums, const LangevinStepArgs& args, Row row) {
  const std::int64_t batch = args.batch;
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
    const double z = args.per_sample ? norms[2 * b] : total_z, g = args.per_sample ? norms[2 * b + 1] : total_g;
    const double ratio = g == 0 ? 0 : z / g, tau = static_cast<double>(row(b)[2]);
    weights[2 * b] = tau * ratio * ratio;
    weights[2 * b + 1] = std::sqrt(2 * tau) * ratio;
  }
  return weights;
}

}  // namespace

void langevin_step_launch_cpu(const LangevinStepArgs& args, const at::Tensor&) {
  const std::int64_t size = args.pixels * args.channels;
  const std::int64_t pixels = step_tile / args.channels / 4 * 4;
  const StepTiles tiles{pixels, (args.pixels + pixels - 1) / pixels};
  const std::int64_t logical = (size + step_tile - 1) / step_tile;  // tiles of the first pass in a sample
  const std::int64_t tile = std::min(size, step_tile);
  // Tiles that one thread should have before a second is worth waking.
  const std::int64_t grain = std::max<std::int64_t>((args.samples != nullptr ? 8192 : 32768) / tile, 1);
  std::vector<double> sums(2 * args.batch * logical);
  const auto norms = FASTSCORE_KERNEL(langevin_norms);
  at::parallel_for(0, args.batch * logical, grain,
                   [&](std::int64_t begin, std::int64_t end) { norms(args, logical, sums.data(), begin, end); });

  const auto weights =
      args.dtype == Dtype::f64
          ? weights_from(sums, args,
                         [&](std::int64_t b) {
                           return static_cast<const double*>(args.coefficients) + b * args.coefficient_stride;
                         })
          : weights_from(sums, args, [&](std::int64_t b) {
              return static_cast<const float*>(args.coefficients) + b * args.coefficient_stride;
            });
  const auto update = FASTSCORE_KERNEL(langevin_update);
  at::parallel_for(0, args.batch * tiles.per_sample, grain,
                   [&](std::int64_t begin, std::int64_t end) { update(args, tiles, weights.data(), begin, end); });
  launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  using OptionalTensor = std::optional<at::Tensor>;
  m.impl("langevin_step",
         [](const at::Tensor& x, const at::Tensor& h, const at::Tensor& coefficients, const OptionalTensor& noise,
            const OptionalTensor& rng, const OptionalTensor& samples, bool per_sample) {
           return langevin_step(x, h, coefficients, noise, rng, samples, per_sample, langevin_step_launch_cpu);
         });
  m.impl("langevin_step_",
         [](at::Tensor x, const at::Tensor& h, const at::Tensor& coefficients, const OptionalTensor& noise,
            const OptionalTensor& rng, const OptionalTensor& samples, bool per_sample) {
           langevin_step_(x, h, coefficients, noise, rng, samples, per_sample, langevin_step_launch_cpu);
         });
}

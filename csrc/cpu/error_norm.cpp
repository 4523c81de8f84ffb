#include "error_norm.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/simd/error_norm.h"

namespace fastscore {
namespace {

// Elements of a tile, and the fewest pixels it has; elements that one thread should read before a second is worth
// waking. The tiles must depend on the shape alone.
constexpr std::int64_t tile_elements = 8192, tile_pixels = 64, grain_reads = 65536;

LaunchCounter launches("error_norm");

// The mean over each sample from the sums of its tiles, added up in order of the tiles, and its root.
template <class Real>
void norms_from(const std::vector<double>& sums, std::int64_t tiles, const ErrorNormArgs& args) {
  auto* norm = static_cast<Real*>(args.out);
  const std::int64_t elements = args.pixels * args.channels;
  for (std::int64_t b = 0; b < args.batch; ++b) {
    double total = 0;
    for (std::int64_t t = b * tiles; t < (b + 1) * tiles; ++t) total += sums[t];
    norm[b] = static_cast<Real>(std::sqrt(total / static_cast<double>(elements)));
  }
}

}  // namespace

void error_norm_launch_cpu(const ErrorNormArgs& args, const at::Tensor&) {
  const std::int64_t pixels = std::max(tile_elements / args.channels / 16 * 16, tile_pixels);
  const ErrorNormTiles tiles{pixels, (args.pixels + pixels - 1) / pixels};
  const std::int64_t reads = std::min(pixels, args.pixels) * args.channels * (args.term_count + 2);
  std::vector<double> sums(args.batch * tiles.per_sample);
  const auto kernel = FASTSCORE_KERNEL(error_norm);
  at::parallel_for(0, args.batch * tiles.per_sample, std::max<std::int64_t>(grain_reads / reads, 1),
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, tiles, sums.data(), begin, end); });
  if (args.dtype == Dtype::f64) {
    norms_from<double>(sums, tiles.per_sample, args);
  } else {
    norms_from<float>(sums, tiles.per_sample, args);
  }
  launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("error_norm", [](at::TensorList terms, const at::Tensor& coefficients, const at::Tensor& u,
                          const at::Tensor& v, double atol, double rtol, std::string_view kind) {
    return error_norm(terms, coefficients, u, v, atol, rtol, kind, error_norm_launch_cpu);
  });
}

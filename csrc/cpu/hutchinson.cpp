#include "hutchinson.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "cpu/dispatch.h"
#include "cpu/simd/hutchinson.h"

namespace fastscore {
namespace {

LaunchCounter launches("hutchinson"), probe_launches("hutchinson_probe");

// Tiles that one thread should have before a second is worth waking.
constexpr std::int64_t grain_signs = 16, grain_normals = 4;

// The sums of tiles added up in order of the tiles, and the means over the probes in order of the probes.
template <class Real>
void add_up(const HutchinsonArgs& args, const std::vector<double>& sums) {
  const std::int64_t tiles = hutchinson_tiles(args);
  for (std::int64_t b = 0; b < args.batch; ++b) {
    double total = 0;
    for (std::int64_t k = 0; k < args.probes; ++k) {
      const std::int64_t row = k * args.batch + b;
      double sum = 0;
      for (std::int64_t t = row * tiles; t < (row + 1) * tiles; ++t) sum += sums[t];
      static_cast<Real*>(args.products)[row] = static_cast<Real>(sum);
      total += sum;
    }
    static_cast<Real*>(args.estimate)[b] = static_cast<Real>(total / static_cast<double>(args.probes));
  }
}

}  // namespace

void hutchinson_launch_cpu(const HutchinsonArgs& args, const at::Tensor&) {
  std::vector<double> sums(args.probes * args.batch * hutchinson_tiles(args));
  const auto kernel = FASTSCORE_KERNEL(hutchinson);
  at::parallel_for(0, static_cast<std::int64_t>(sums.size()), args.signs ? grain_signs : grain_normals,
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, sums.data(), begin, end); });
  args.dtype == Dtype::f64 ? add_up<double>(args, sums) : add_up<float>(args, sums);
  launches.cpu();
}

void hutchinson_probe_launch_cpu(const HutchinsonProbeArgs& args, const at::Tensor&) {
  const auto kernel = FASTSCORE_KERNEL(hutchinson_probe);
  at::parallel_for(0, args.probes * args.batch * hutchinson_tiles(args), args.signs ? grain_signs : grain_normals,
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  probe_launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("hutchinson",
         [](const at::Tensor& jvp, const at::Tensor& rng, const at::Tensor& samples, std::string_view kind) {
           return hutchinson(jvp, rng, samples, kind, hutchinson_launch_cpu);
         });
  m.impl("hutchinson_probe", [](const at::Tensor& rng, const at::Tensor& samples,
                                const std::optional<at::Tensor>& weight, std::int64_t probes, at::IntArrayRef shape,
                                at::ScalarType dtype, std::string_view kind, bool channels_last) {
    return hutchinson_probe(rng, samples, weight, probes, shape, dtype, kind, channels_last,
                            hutchinson_probe_launch_cpu);
  });
}

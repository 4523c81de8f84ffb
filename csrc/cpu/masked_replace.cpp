#include "masked_replace.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/simd/masked_replace.h"

namespace fastscore {
namespace {

LaunchCounter launches("masked_replace");

// Elements that one thread should have before a second is worth waking.
constexpr std::int64_t grain_drawing = 8192, grain_moving = 32768;

void masked_replace_launch_cpu(const MaskedReplaceArgs& args, const at::Tensor&) {
  const std::int64_t whole = step_tile / args.channels / 4 * 4;
  const StepTiles tiles{whole, (args.pixels + whole - 1) / whole};
  const std::int64_t elements = std::min(whole, args.pixels) * args.channels;
  const std::int64_t grain = (args.samples != nullptr ? grain_drawing : grain_moving) / elements;
  const auto kernel = FASTSCORE_KERNEL(masked_replace);
  at::parallel_for(0, args.batch * tiles.per_sample, std::max<std::int64_t>(grain, 1),
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, tiles, begin, end); });
  launches.cpu();
}

}  // namespace
}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("masked_replace_", [](at::Tensor x, const at::Tensor& known, const at::Tensor& mask,
                               const at::Tensor& coefficients, const std::optional<at::Tensor>& noise,
                               const std::optional<at::Tensor>& rng, const std::optional<at::Tensor>& samples) {
    masked_replace_(x, known, mask, coefficients, noise, rng, samples, masked_replace_launch_cpu);
  });
}

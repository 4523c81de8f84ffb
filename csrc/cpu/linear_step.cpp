#include "linear_step.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/simd/linear_step.h"

namespace fastscore {
namespace {

LaunchCounter launches("linear_step");

// Elements that one thread should have before a second is worth waking.
constexpr std::int64_t grain_drawing = 8192, grain_moving = 32768;

}  // namespace

void linear_step_launch_cpu(const LinearStepArgs& args, const at::Tensor&) {
  const std::int64_t whole = step_tile / args.channels / 4 * 4;
  const StepTiles tiles{whole, (args.pixels + whole - 1) / whole};
  const std::int64_t elements = std::min(whole, args.pixels) * args.channels;
  const std::int64_t grain = (args.samples != nullptr ? grain_drawing : grain_moving) / elements;
  const auto kernel = FASTSCORE_KERNEL(linear_step);
  at::parallel_for(0, args.batch * tiles.per_sample, std::max<std::int64_t>(grain, 1),
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, tiles, begin, end); });
  launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("linear_step", [](const at::Tensor& x, at::TensorList history, const at::Tensor& coefficients,
                           const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                           const std::optional<at::Tensor>& samples) {
    return linear_step(x, history, coefficients, noise, rng, samples, linear_step_launch_cpu);
  });
  m.impl("linear_step_", [](at::Tensor x, at::TensorList history, const at::Tensor& coefficients,
                            const std::optional<at::Tensor>& noise, const std::optional<at::Tensor>& rng,
                            const std::optional<at::Tensor>& samples) {
    linear_step_(x, history, coefficients, noise, rng, samples, linear_step_launch_cpu);
  });
}

#include "solver_step.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/simd/solver_step.h"

namespace fastscore {
namespace {

LaunchCounter launches("solver_step");

// Elements that one thread should have before a second is worth waking.
constexpr std::int64_t grain_drawing = 8192, grain_moving = 32768;

}  // namespace

void solver_step_launch_cpu(const SolverStepArgs& args, const at::Tensor&) {
  const std::int64_t whole = step_tile / args.channels / 4 * 4;
  const StepTiles tiles{whole, (args.pixels + whole - 1) / whole};
  const std::int64_t tile = std::min(whole, args.pixels) * args.channels;
  const std::int64_t grain =
      (args.samples != nullptr || args.exponent.data != nullptr ? grain_drawing : grain_moving) / tile;
  const auto kernel = FASTSCORE_KERNEL(solver_step);
  at::parallel_for(0, args.batch * tiles.per_sample, std::max<std::int64_t>(grain, 1),
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, tiles, begin, end); });
  launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  using OptionalTensor = std::optional<at::Tensor>;
  m.impl("solver_step", [](const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                           const at::Tensor& coefficients, const OptionalTensor& exponent, const OptionalTensor& noise,
                           const OptionalTensor& rng, const OptionalTensor& samples) {
    return solver_step(x, h, history, coefficients, exponent, noise, rng, samples, solver_step_launch_cpu);
  });
  m.impl("solver_step_", [](const at::Tensor& x, const at::Tensor& h, at::TensorList history,
                            const at::Tensor& coefficients, const OptionalTensor& exponent, const OptionalTensor& noise,
                            const OptionalTensor& rng, const OptionalTensor& samples, const OptionalTensor& m) {
    solver_step_(x, h, history, coefficients, exponent, noise, rng, samples, m, solver_step_launch_cpu);
  });
}

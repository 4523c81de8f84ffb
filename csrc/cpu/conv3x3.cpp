#include "conv3x3.h"

#include <ATen/Parallel.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/simd/conv3x3.h"
#include "cpu/workspace.h"

namespace fastscore {
namespace {

LaunchCounter launches("conv3x3_winograd"), weight_launches("conv3x3_weights");

std::int64_t cache_bytes() {
  static const std::int64_t bytes = [] {
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return found > 0 ? std::int64_t{found} : std::int64_t{1} << 20;
  }();
  return bytes;
}

std::int64_t over(std::int64_t n, std::int64_t d) {
  return (n + d - 1) / d;
}

// Outputs whose products are kept at a time; tiles of a block: with fewer the weights are read too often, with more the
// block leaves the cache; tiles of a thread below which threads share the outputs of a block and not the blocks.
constexpr std::int64_t kept_outputs = 64, least_tiles = 24, most_tiles = 36, few_tiles = 16;

Conv3x3Plan plan_of(const Conv3x3Args& args, std::int64_t threads) {
  const std::int64_t panel = conv3x3_panel(), panels = over(args.outputs, panel);
  const std::int64_t across = over(args.width, args.tile), strips = args.batch * over(args.height, args.tile);
  Conv3x3Plan plan;
  plan.shares = across * strips < few_tiles * threads ? std::min(threads, panels) : 1;
  plan.panels = std::min(std::max<std::int64_t>(kept_outputs / panel, 1), over(panels, plan.shares));
  const std::int64_t points = (args.tile + 2) * (args.tile + 2);
  const std::int64_t tile_bytes = 4 * points * (args.channels + plan.panels * panel);
  const std::int64_t tiles = std::clamp(cache_bytes() * 3 / 4 / tile_bytes, least_tiles, most_tiles);
  plan.strips = std::clamp<std::int64_t>(tiles / across, 1, strips);
  plan.blocks = over(strips, plan.strips);
  if (plan.shares == 1) {  // as many blocks as make the threads end together
    plan.strips = over(strips, over(plan.blocks, threads) * threads);
    plan.blocks = over(strips, plan.strips);
  }
  return plan;
}

}  // namespace

std::int64_t conv3x3_panel() {
  static const std::int64_t panel = FASTSCORE_KERNEL(conv3x3_panel)();
  return panel;
}

at::Tensor conv3x3_weights_cpu(const at::Tensor& weight, std::int64_t tile, bool turned) {
  constexpr const char* op = "conv3x3_weights";
  TORCH_CHECK_VALUE(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, op,
                    ": weight must have shape (K, C, 3, 3), got ", weight.sizes());
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16, op,
                   ": weight must be float32 or bfloat16, got ", weight.scalar_type());
  const at::Tensor wide = weight.to(at::kFloat);
  TORCH_CHECK_VALUE(tile == 2 || tile == 4, op, ": tile must be 2 or 4, got ", tile);
  Conv3x3Weights weights;
  weights.from = wide.const_data_ptr<float>();
  std::copy_n(wide.strides().begin(), 4, weights.strides);
  weights.outputs = weight.size(turned ? 1 : 0);
  weights.channels = weight.size(turned ? 0 : 1);
  weights.turned = turned;
  weights.tile = static_cast<int>(tile);
  const std::int64_t panels = over(weights.outputs, conv3x3_panel());
  const at::Tensor out = wide.new_empty({panels, (tile + 2) * (tile + 2), weights.channels, conv3x3_panel()});
  weights.to = out.mutable_data_ptr<float>();
  const auto kernel = FASTSCORE_KERNEL(conv3x3_weights);
  at::parallel_for(0, panels, 1, [&](std::int64_t begin, std::int64_t end) { kernel(weights, begin, end); });
  weight_launches.cpu();
  return out;
}

void conv3x3_launch_cpu(const Conv3x3Args& args) {
  const Conv3x3Plan plan = plan_of(args, at::get_num_threads());
  const std::int64_t scratch = FASTSCORE_KERNEL(conv3x3_scratch)(args, plan).total();
  const auto kernel = FASTSCORE_KERNEL(conv3x3);
  at::parallel_for(0, plan.blocks * plan.shares, 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local Workspace workspace;
    kernel(args, plan, workspace.get<float>(scratch), begin, end);
  });
  launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("conv3x3_weights", conv3x3_weights_cpu);
  m.impl("conv3x3_winograd", [](const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
                                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
                                const std::optional<at::Tensor>& residual, double scale,
                                const std::optional<at::Tensor>& gain, const std::optional<at::Tensor>& offset,
                                bool silu) {
    return conv3x3(x, weights, outputs, tile, bias, shift, residual, scale, gain, offset, silu, conv3x3_launch_cpu);
  });
  m.impl("conv3x3_winograd_into",
         [](const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t tile,
            const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
            const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
            const std::optional<at::Tensor>& offset, bool silu, bool upsample,
            const std::optional<at::Tensor>& statistics, const at::Tensor& out) {
           conv3x3_into(x, weights, outputs, tile, bias, shift, residual, scale, gain, offset, silu, upsample,
                        statistics, out, conv3x3_launch_cpu);
         });
}

#include "conv_gemm.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/simd/conv_gemm.h"
#include "cpu/workspace.h"

namespace fastscore {
namespace {

LaunchCounter launches("conv_gemm"), weight_launches("conv_gemm_weights");

std::int64_t over(std::int64_t n, std::int64_t d) {
  return (n + d - 1) / d;
}

// Pixels of a block: with fewer, reading the weights costs more than the products; and what stands in front of a 3x3
// kernel is computed again for the rows that two blocks share.
constexpr std::int64_t most_pixels = 96, most_behind = 192;

// Blocks of many pixels for all threads; where there are too few of those, threads share the outputs of a block.
ConvGemmPlan plan_of(const ConvGemmArgs& args, std::int64_t threads) {
  static const std::int64_t rows = FASTSCORE_KERNEL(conv_gemm_rows)();
  const std::int64_t pixels = args.batch * args.out_height * args.out_width;
  const std::int64_t panels = over(args.outputs, conv_gemm_panel());
  ConvGemmPlan plan;
  const bool twice = args.kernel > 1 && (args.gain != nullptr || args.silu);
  plan.blocks = over(pixels, twice ? most_behind : most_pixels);
  plan.shares = std::min(over(threads, plan.blocks), panels);
  plan.blocks = over(plan.blocks * plan.shares, threads) * threads / plan.shares;
  plan.pixels = over(over(pixels, plan.blocks), rows) * rows;
  plan.blocks = over(pixels, plan.pixels);
  return plan;
}

}  // namespace

std::int64_t conv_gemm_panel() {
  static const std::int64_t panel = FASTSCORE_KERNEL(conv_gemm_panel)();
  return panel;
}

at::Tensor conv_gemm_weights_cpu(const at::Tensor& weight) {
  constexpr const char* op = "conv_gemm_weights";
  const bool matrix = weight.dim() == 2;
  TORCH_CHECK_VALUE(
      matrix || (weight.dim() == 4 && weight.size(2) == weight.size(3) && (weight.size(2) == 1 || weight.size(2) == 3)),
      op, ": weight must have shape (K, C), (K, C, 1, 1) or (K, C, 3, 3), got ", weight.sizes());
  TORCH_CHECK_TYPE(weight.scalar_type() == at::kFloat, op, ": weight must be float32, got ", weight.scalar_type());
  ConvGemmWeights weights;
  weights.from = weight.const_data_ptr<float>();
  std::copy(weight.strides().begin(), weight.strides().end(), weights.strides);
  weights.outputs = weight.size(0);
  weights.channels = weight.size(1);
  weights.kernel = matrix ? 1 : static_cast<int>(weight.size(2));
  const std::int64_t panels = over(weights.outputs, conv_gemm_panel());
  const at::Tensor out =
      weight.new_empty({panels, weights.kernel * weights.kernel * weights.channels, conv_gemm_panel()});
  weights.to = out.mutable_data_ptr<float>();
  const auto kernel = FASTSCORE_KERNEL(conv_gemm_weights);
  at::parallel_for(0, panels, 1, [&](std::int64_t begin, std::int64_t end) { kernel(weights, begin, end); });
  weight_launches.cpu();
  return out;
}

void conv_gemm_launch_cpu(const ConvGemmArgs& args) {
  const ConvGemmPlan plan = plan_of(args, at::get_num_threads());
  const std::int64_t scratch = FASTSCORE_KERNEL(conv_gemm_scratch)(args, plan);
  const auto kernel = FASTSCORE_KERNEL(conv_gemm);
  at::parallel_for(0, plan.blocks * plan.shares, 1, [&](std::int64_t begin, std::int64_t end) {
    static thread_local Workspace workspace;
    kernel(args, plan, workspace.get<char>(scratch), begin, end);
  });
  launches.cpu();
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("conv_gemm_weights", conv_gemm_weights_cpu);
  m.impl(
      "conv_gemm_into",
      [](const at::Tensor& x, const at::Tensor& weights, std::int64_t outputs, std::int64_t kernel, std::int64_t stride,
         std::int64_t padding, const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& shift,
         const std::optional<at::Tensor>& residual, double scale, const std::optional<at::Tensor>& gain,
         const std::optional<at::Tensor>& offset, bool silu, bool upsample, const at::Tensor& out) {
        conv_gemm_into(x, weights, outputs, kernel, stride, padding, bias, shift, residual, scale, gain, offset, silu,
                       upsample, out, conv_gemm_launch_cpu);
      });
}

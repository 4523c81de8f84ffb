#include "group_norm_silu.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/simd/group_norm_silu.h"

namespace fastscore {
namespace {

LaunchCounter forward_launches("group_norm_silu_fwd"), backward_launches("group_norm_silu_bwd"),
    jvp_launches("group_norm_silu_jvp");

constexpr std::int64_t grain = 16384;  // elements that one thread should have before a second is worth waking
constexpr std::int64_t full_row = 64;  // channels-last rows shorter than this are folded

// One launch: what the kernels get, and what has to live until they are done.
struct Launch {
  GroupNormSiluCpuArgs args;
  Layout layout;
  at::ScalarType real;
  c10::SmallVector<at::Tensor, 3> keep;

  void* scratch(at::IntArrayRef sizes, at::ScalarType dtype) {
    return keep.emplace_back(at::empty(sizes, at::TensorOptions().dtype(dtype))).mutable_data_ptr();
  }

  explicit Launch(const GroupNormSiluCall& call) : args{call.args}, layout(call.layout) {
    real = args.dtype == Dtype::f64 ? at::kDouble : at::kFloat;
    // Samples of one pixel are the same in both layouts, and vectors run along channels.
    if (args.pixels == 1) layout = Layout::channels_last;
    if (layout == Layout::channels_last)
      while (args.fold * args.channels < full_row && args.pixels % (2 * args.fold) == 0) args.fold *= 2;
    args.lane_channels = args.fold * args.channels;
    args.coefficients = scratch({args.batch, group_norm_silu_coefficients, args.lane_channels}, real);
    if (args.kind != GroupNormSiluKind::forward || layout == Layout::channels_last)
      args.sums = static_cast<double*>(scratch({args.batch, 3, args.channels}, at::kDouble));
  }

  void run() { layout == Layout::channels_last ? run_channels_last() : run_contiguous(); }

  void run_contiguous() {
    const auto kernel = FASTSCORE_KERNEL(group_norm_silu_contiguous);
    const std::int64_t size = args.channels / args.groups * args.pixels;
    at::parallel_for(0, args.batch * args.groups, std::max<std::int64_t>(grain / size, 1),
                     [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  }

  void run_channels_last() {
    const std::int64_t rows = args.pixels / args.fold;
    args.rows = std::min(rows, std::clamp<std::int64_t>(8192 / args.lane_channels, 32, 64));
    args.blocks = (rows + args.rows - 1) / args.rows;
    args.partial = scratch({args.batch, args.blocks, 3, args.lane_channels}, real);
    const auto prepare = FASTSCORE_KERNEL(group_norm_silu_channels_last_prepare);
    const auto sum = FASTSCORE_KERNEL(group_norm_silu_channels_last_sum);
    const auto finish = FASTSCORE_KERNEL(group_norm_silu_channels_last_finish);
    const auto write = FASTSCORE_KERNEL(group_norm_silu_channels_last_write);
    const std::int64_t size = args.channels * args.pixels, threads = at::get_num_threads();
    if (args.batch % threads == 0 || args.batch >= 4 * threads || size * args.batch <= grain) {
      // Sample by sample, so that a sample is still in the cache when it is written.
      at::parallel_for(0, args.batch, std::max<std::int64_t>(grain / size, 1),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t n = begin; n < end; ++n) {
                           prepare(args, n, n + 1);
                           sum(args, n * args.blocks, (n + 1) * args.blocks);
                           finish(args, n, n + 1);
                           write(args, n * args.blocks, (n + 1) * args.blocks);
                         }
                       });
      return;
    }
    // Too few samples to share out: all threads work on the blocks of all samples.
    const std::int64_t block_grain = std::max<std::int64_t>(grain / (args.rows * args.lane_channels), 1);
    const auto phase = [&](auto kernel, std::int64_t count, std::int64_t phase_grain) {
      at::parallel_for(0, count, phase_grain, [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
    };
    prepare(args, 0, args.batch);
    phase(sum, args.batch * args.blocks, block_grain);
    phase(finish, args.batch, 1);
    phase(write, args.batch * args.blocks, block_grain);
  }

  // The gradient of a parameter: term(n, c), summed over n where the samples share it; in its shape and dtype.
  template <class Term>
  void gradient(const at::Tensor& gradient, Term term) const {
    if (!gradient.defined()) return;
    const bool shared = gradient.dim() == 1;
    const at::Tensor total = at::zeros(gradient.sizes(), at::kDouble);
    double* to = total.mutable_data_ptr<double>();
    for (std::int64_t n = 0; n < args.batch; ++n)
      for (std::int64_t c = 0; c < args.channels; ++c) to[shared ? c : n * args.channels + c] += term(n, c);
    gradient.copy_(total);
  }

  double sum(int k, std::int64_t n, std::int64_t c) const { return args.sums[(n * 3 + k) * args.channels + c]; }

  double number(GroupNormSiluArgs::Parameter p, std::int64_t n, std::int64_t c, double otherwise) const {
    if (p.data == nullptr) return otherwise;
    const std::int64_t at = n * p.stride + c;
    return real == at::kDouble ? static_cast<const double*>(p.data)[at] : static_cast<const float*>(p.data)[at];
  }
};

void run(const GroupNormSiluCall& call) {
  Launch launch(call);
  launch.run();
  if (call.args.kind == GroupNormSiluKind::forward) return forward_launches.cpu();
  if (call.args.kind == GroupNormSiluKind::jvp) return jvp_launches.cpu();
  backward_launches.cpu();

  const auto& p = call.args.value;
  // v = (xhat weight + bias) (1 + scale) + shift; see GroupNormSiluCpuArgs for the sums.
  const auto gain = [&](auto n, auto c) { return 1 + launch.number(p.scale, n, c, 0); };
  const auto grad_weight = [&](auto n, auto c) { return gain(n, c) * launch.sum(1, n, c); };
  const auto grad_bias = [&](auto n, auto c) { return gain(n, c) * launch.sum(0, n, c); };
  const auto grad_scale = [&](auto n, auto c) {
    return launch.number(p.weight, n, c, 1) * launch.sum(1, n, c) +
           launch.number(p.bias, n, c, 0) * launch.sum(0, n, c);
  };
  const auto grad_shift = [&](auto n, auto c) { return launch.sum(0, n, c); };
  const auto grad_add = [&](auto n, auto c) { return launch.sum(2, n, c); };
  launch.gradient(call.gradients[0], grad_weight);
  launch.gradient(call.gradients[1], grad_bias);
  launch.gradient(call.gradients[2], grad_add);
  launch.gradient(call.gradients[3], grad_scale);
  launch.gradient(call.gradients[4], grad_shift);
}

}  // namespace

const GroupNormSiluLaunch group_norm_silu_cpu = {at::kCPU, run};

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("group_norm_silu_fwd", GroupNormSiluOn<group_norm_silu_cpu, group_norm_silu_fwd>::call);
  m.impl("group_norm_silu_into", GroupNormSiluOn<group_norm_silu_cpu, group_norm_silu_into>::call);
  m.impl("group_norm_silu_bwd", GroupNormSiluOn<group_norm_silu_cpu, group_norm_silu_bwd>::call);
  m.impl("group_norm_silu_jvp", GroupNormSiluOn<group_norm_silu_cpu, group_norm_silu_jvp>::call);
}

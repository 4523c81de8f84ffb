#include "fastscore/attention.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/simd/attention.h"
#include "cpu/workspace.h"

namespace fastscore {
namespace {

constexpr const char* op = "attention_into";
constexpr std::int64_t grain = 1 << 18;  // multiplications that one thread should have before a second is worth waking

LaunchCounter launches(op);

AttentionArgs::Rows rows_of(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.size(3) <= 1 || tensor.stride(3) == 1, op, ": ", name,
                    " must have rows without gaps, got strides ", tensor.strides());
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

void attention_into(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                    const at::Tensor& out) {
  TORCH_CHECK_VALUE(q.dim() == 4, op, ": q must have shape (B, heads, N, D), got ", q.sizes());
  TORCH_CHECK_TYPE(q.scalar_type() == at::kFloat, op, ": q must be float32, got ", q.scalar_type());
  check_like(op, "k", k, q, "q");
  check_like(op, "v", v, q, "q");
  check_like(op, "out", out, q, "q");
  AttentionArgs args;
  args.q_rows = rows_of(q, "q");
  args.k_rows = rows_of(k, "k");
  args.v_rows = rows_of(v, "v");
  args.out_rows = rows_of(out, "out");
  if (q.numel() == 0) return;
  args.q = q.const_data_ptr<float>();
  args.k = k.const_data_ptr<float>();
  args.v = v.const_data_ptr<float>();
  args.out = out.mutable_data_ptr<float>();
  args.batch = q.size(0);
  args.heads = q.size(1);
  args.rows = q.size(2);
  args.channels = q.size(3);
  args.scale = static_cast<float>(scale);

  const std::int64_t panel = FASTSCORE_KERNEL(attention_panel)(), heads = args.batch * args.heads;
  const std::int64_t panels = (args.rows + panel - 1) / panel;
  // Many read keys and values seldom, few give all threads something to do.
  args.panels =
      std::clamp<std::int64_t>(heads * panels / at::get_num_threads(), 1, std::min(panels, attention_most_panels));
  const std::int64_t blocks = (panels + args.panels - 1) / args.panels;
  const std::int64_t scratch = FASTSCORE_KERNEL(attention_scratch)(args);
  const auto kernel = FASTSCORE_KERNEL(attention);
  at::parallel_for(0, heads * blocks,
                   std::max<std::int64_t>(grain / (2 * args.panels * panel * args.rows * args.channels), 1),
                   [&](std::int64_t begin, std::int64_t end) {
                     static thread_local Workspace workspace;
                     kernel(args, workspace.get<float>(scratch), begin, end);
                   });
  launches.cpu();
}

}  // namespace
}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  m.impl("attention_into", fastscore::attention_into);
}

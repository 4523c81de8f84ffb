#include "cpu/philox.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/simd/philox.h"
#include "tensors.h"

namespace fastscore {
namespace {

LaunchCounter normal_launches("philox_normal"), rademacher_launches("philox_rademacher");

constexpr std::int64_t grain = 8;  // tiles that one thread should have before a second is worth waking

using Kernel = void (*)(const PhiloxArgs&, std::int64_t, std::int64_t);

at::Tensor draw(const char* op, const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape,
                at::ScalarType dtype, Kernel kernel, LaunchCounter& launches) {
  TORCH_CHECK_TYPE(rng.scalar_type() == at::kLong && samples.scalar_type() == at::kLong, op,
                   ": rng and samples must be int64, got ", rng.scalar_type(), " and ", samples.scalar_type());
  TORCH_CHECK_VALUE(rng.dim() == 1 && rng.size(0) == 2, op, ": rng must have shape (2,), got ", rng.sizes());
  TORCH_CHECK_VALUE(!shape.empty(), op, ": shape must have a batch dimension, got ()");
  TORCH_CHECK_VALUE(samples.dim() == 1 && samples.size(0) == shape[0], op, ": samples must have shape (", shape[0],
                    ",), got ", samples.sizes());
  TORCH_CHECK_VALUE(samples.device() == rng.device(), op, ": samples must be on ", rng.device(), ", got ",
                    samples.device());
  const at::Tensor out = at::empty(shape, rng.options().dtype(dtype));
  const at::Tensor state = rng.contiguous(), index = samples.contiguous();
  PhiloxArgs args;
  args.dtype = dtype_of(out, op, "dtype");
  if (out.numel() == 0) return out;
  args.out = out.mutable_data_ptr();
  args.rng = state.const_data_ptr<std::int64_t>();
  args.samples = index.const_data_ptr<std::int64_t>();
  args.batch = shape[0];
  args.size = out.numel() / args.batch;
  at::parallel_for(0, args.batch * args.tiles_per_row(), grain,
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  launches.cpu();
  return out;
}

}  // namespace

at::Tensor philox_words_cpu(const at::Tensor& rng, const at::Tensor& samples, const at::Tensor& first_blocks,
                            std::int64_t count) {
  TORCH_CHECK_VALUE(samples.dim() == 1 && first_blocks.sizes() == samples.sizes() && count >= 0 && rng.dim() == 2 &&
                        rng.size(0) == samples.size(0) && rng.size(1) == 2,
                    "philox_words_cpu: wants rng (n, 2), samples (n,), first_blocks (n,), count >= 0");
  const at::Tensor out = at::empty({samples.size(0), count, 4}, samples.options());
  const auto kernel = FASTSCORE_KERNEL(philox_words);
  const auto state = rng.contiguous(), index = samples.contiguous(), first = first_blocks.contiguous();
  for (std::int64_t i = 0; i < samples.size(0); ++i) {
    const std::int64_t* key = state.const_data_ptr<std::int64_t>() + 2 * i;
    kernel(key[0], key[1], index.const_data_ptr<std::int64_t>()[i], first.const_data_ptr<std::int64_t>()[i], count,
           out.mutable_data_ptr<std::int64_t>() + 4 * count * i);
  }
  return out;
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("philox_normal",
         [](const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape, at::ScalarType dtype) {
           return draw("philox_normal", rng, samples, shape, dtype, FASTSCORE_KERNEL(philox_normal), normal_launches);
         });
  m.impl("philox_rademacher",
         [](const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape, at::ScalarType dtype) {
           return draw("philox_rademacher", rng, samples, shape, dtype, FASTSCORE_KERNEL(philox_rademacher),
                       rademacher_launches);
         });
}

#include "philox.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/simd/philox.h"

namespace fastscore {
namespace {

LaunchCounter normal_launches("philox_normal"), rademacher_launches("philox_rademacher");

constexpr std::int64_t grain = 8;  // tiles that one thread should have before a second is worth waking

using Kernel = void (*)(const PhiloxArgs&, std::int64_t, std::int64_t);

void run(const PhiloxArgs& args, Kernel kernel, LaunchCounter& launches) {
  at::parallel_for(0, args.batch * philox_tiles(args), grain,
                   [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
  launches.cpu();
}

void normal_launch(const PhiloxArgs& args, const at::Tensor&) {
  run(args, FASTSCORE_KERNEL(philox_normal), normal_launches);
}
void rademacher_launch(const PhiloxArgs& args, const at::Tensor&) {
  run(args, FASTSCORE_KERNEL(philox_rademacher), rademacher_launches);
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
           return philox_noise("philox_normal", rng, samples, shape, dtype, normal_launch);
         });
  m.impl("philox_rademacher",
         [](const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape, at::ScalarType dtype) {
           return philox_noise("philox_rademacher", rng, samples, shape, dtype, rademacher_launch);
         });
}

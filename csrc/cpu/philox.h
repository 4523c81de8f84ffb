// Counter-based noise as tensors on the CPU, and its raw words for the tests.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastscore {

// Words of `count` blocks from first_blocks[i] on, of sample samples[i] at rng[i] = (seed, draw): int64 (n, count, 4).
at::Tensor philox_words_cpu(const at::Tensor& rng, const at::Tensor& samples, const at::Tensor& first_blocks,
                            std::int64_t count);

}  // namespace fastscore

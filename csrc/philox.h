// Counter-based noise as tensors, shared by the CPU and the CUDA registration, and its raw words for the tests.
#pragma once

#include <ATen/core/Tensor.h>

#include "fastscore/philox_noise.h"

namespace fastscore {

using PhiloxLaunch = void (*)(const PhiloxArgs& args, const at::Tensor& out);

// Checks what would crash a kernel of `op`, and launches.
at::Tensor philox_noise(const char* op, const at::Tensor& rng, const at::Tensor& samples, at::IntArrayRef shape,
                        at::ScalarType dtype, PhiloxLaunch launch);

// Words of `count` blocks from first_blocks[i] on, of sample samples[i] at rng[i] = (seed, draw): int64 (n, count, 4).
at::Tensor philox_words_cpu(const at::Tensor& rng, const at::Tensor& samples, const at::Tensor& first_blocks,
                            std::int64_t count);

}  // namespace fastscore

// Probes eps_k of Hutchinson's estimator, and their products with J eps_k: the arguments of the kernels, without any
// torch type. Probe k is the noise of draw rng[1] + k.
#pragma once

#include <cstdint>

#include "fastscore/dtype.h"

namespace fastscore {

struct HutchinsonArgs {
  // J eps: probes (K, B, ...), each sample dense.
  const void* jvp = nullptr;
  std::int64_t probe_stride = 0, sample_stride = 0;

  // (B,) and (K, B), dense, in float (double if the tensors are double), and what sums of tiles are left in.
  void* estimate = nullptr;
  void* products = nullptr;
  double* scratch = nullptr;

  const std::int64_t* rng = nullptr;      // (seed, draw)
  const std::int64_t* samples = nullptr;  // samples[b]: the index of sample b
  bool signs = true;                      // or normals

  // Elements of a sample in memory: `pixels` rows of `channels`. Element (p, c) has the logical index c * pixels + p.
  // A contiguous sample has channels = 1.
  std::int64_t probes = 0, batch = 0, pixels = 0, channels = 1;
  Dtype dtype = Dtype::f32;
};

struct HutchinsonProbeArgs {
  void* out = nullptr;           // (K, B, ...), dense
  const void* weight = nullptr;  // (K, B), dense, a factor in float (double if `out` is double); null for none

  const std::int64_t* rng = nullptr;
  const std::int64_t* samples = nullptr;
  bool signs = true;

  std::int64_t probes = 0, batch = 0, pixels = 0, channels = 1;
  Dtype dtype = Dtype::f32;
};

}  // namespace fastscore

// out = softmax(scale q k^T) v: what the kernels of the CPU get, without any torch type.
#pragma once

#include <cstdint>

namespace fastscore {

struct AttentionArgs {
  struct Rows {  // (B, heads, N, D), the elements of a row side by side
    std::int64_t batch = 0, head = 0, row = 0;

    std::int64_t at(std::int64_t b, std::int64_t h) const { return b * batch + h * head; }
  };

  const float *q = nullptr, *k = nullptr, *v = nullptr;
  float* out = nullptr;
  Rows q_rows, k_rows, v_rows, out_rows;
  std::int64_t batch = 0, heads = 0, rows = 0, channels = 0;
  float scale = 1;

  std::int64_t panels = 1;  // of queries at a time, see csrc/cpu/simd/attention.h
};

}  // namespace fastscore

// A square of numbers, as many vectors as a vector has lanes, with rows and columns exchanged.
#pragma once

#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {

// With row and column as one index of 2 log2(lanes32) bits, interleaving the rows of both halves rotates it by one bit.
FASTSCORE_INLINE void transpose(vf32 (&rows)[lanes32]) {
  constexpr int half = lanes32 / 2;
  vi32 low, high;
  for (int i = 0; i < lanes32; ++i) {
    low[i] = i / 2 + i % 2 * lanes32;
    high[i] = low[i] + half;
  }
#pragma GCC unroll 4
  for (int bit = 1; bit < lanes32; bit *= 2) {
    vf32 next[lanes32];
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + half], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + half], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes32; ++i) rows[i] = next[i];
  }
}

}  // namespace fastscore::FASTSCORE_ISA

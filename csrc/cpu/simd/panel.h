// Products of matrices a panel at a time: what fits into the registers, and sizes in whole cache lines.
#pragma once

#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {

constexpr int lanes = lanes32, panel = 2 * lanes;
#if defined(__AVX512F__)
constexpr int most_rows = 12;  // of a product that fits into the registers, with a row of a panel
#else
constexpr int most_rows = 6;
#endif
constexpr std::int64_t line = 16;  // elements of a cache line

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) {
  return (n + to - 1) / to * to;
}
// An odd number of cache lines: rows or planes that lie a power of two apart would share a set of the cache.
constexpr std::int64_t odd_lines(std::int64_t n) {
  return (round_up(n, line) / line | 1) * line;
}

}  // namespace fastscore::FASTSCORE_ISA

#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/resample.h"

namespace fastscore {

// The filter as a sum of products: w[a, b] = sum over terms t of columns[t, a] * rows[t, b]; both (count, max_taps), in
// float (double if the tensors are double).
struct ResampleTerms {
  const void *columns, *rows;
  int count;
};

// A tile is a rectangle of outputs of one channel or, channels last, of all of them.
struct ResampleTiles {
  std::int64_t rows, width;          // of a tile, width even; the last ones may have fewer
  std::int64_t per_column, per_row;  // tiles one below the other, and side by side
  std::int64_t stride;               // elements of a row of a buffer, even
};

// Contiguous planes too narrow for vectors along their rows are computed this many at a time, as channels of
// channels-last copies in scratch memory. Channels-last pixels of fewer than `few_channels` go through a row of it.
inline constexpr std::int64_t planes_together = 16, few_channels = 8;

// resample computes tiles [begin, end), counted down columns, along rows, through channels, then samples. `scratch`
// holds a buffer of `rows` rows for each term, and two rows more.
// resample_planes computes groups [begin, end) of planes, counted through channels, then samples. `tiles` are those of
// the copies, and `copies` holds x, then the outputs of a group.
#define FASTSCORE_DECLARE(isa)                                                                                         \
  namespace isa {                                                                                                      \
  void resample(const ResampleArgs& args, ResampleTerms terms, ResampleTiles tiles, void* scratch, std::int64_t begin, \
                std::int64_t end);                                                                                     \
  void resample_planes(const ResampleArgs& args, ResampleTerms terms, ResampleTiles tiles, void* scratch,              \
                       void* copies, std::int64_t begin, std::int64_t end);                                            \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/conv3x3.h"

namespace fastscore {

// How the work is cut. A strip is a row of tiles of one image; strips are counted down images, then through samples.
struct Conv3x3Plan {
  std::int64_t strips;  // of a block: as many as are transformed at a time
  std::int64_t blocks;
  std::int64_t panels;  // of weights, whose products are kept at a time
  std::int64_t shares;  // parts of all panels, of which each is the work of one thread on a block
};

// Elements of the scratch memory of a thread.
struct Conv3x3Scratch {
  std::int64_t strip, inputs, products;
  std::int64_t total() const { return strip + inputs + products; }
};

// Weights (outputs, channels, 3, 3), of any strides in elements; `turned`: of the convolution that gives the gradient
// in the input of theirs, which has outputs and channels exchanged.
struct Conv3x3Weights {
  const float* from = nullptr;
  std::int64_t strides[4] = {};
  std::int64_t outputs = 0, channels = 0;  // of the result
  bool turned = false;
  int tile = 4;
  float* to = nullptr;  // see Conv3x3Args::weights
};

// conv3x3_panel: outputs whose weights lie side by side, known once the instruction set is.
// conv3x3_weights transforms panels [begin, end).
// conv3x3 computes items [begin, end) of blocks * shares, counted through shares, then blocks.
#define FASTSCORE_DECLARE(isa)                                                                       \
  namespace isa {                                                                                    \
  std::int64_t conv3x3_panel();                                                                      \
  void conv3x3_weights(const Conv3x3Weights& weights, std::int64_t begin, std::int64_t end);         \
  Conv3x3Scratch conv3x3_scratch(const Conv3x3Args& args, const Conv3x3Plan& plan);                  \
  void conv3x3(const Conv3x3Args& args, const Conv3x3Plan& plan, float* scratch, std::int64_t begin, \
               std::int64_t end);                                                                    \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

#pragma once

#include "cpu/simd/kernel.h"
#include "fastscore/conv_gemm.h"

namespace fastscore {

// How the work is cut. Pixels of out are counted along rows, down images, through samples.
struct ConvGemmPlan {
  std::int64_t pixels;  // of a block: as many as are multiplied with a panel of weights at a time
  std::int64_t blocks;
  std::int64_t shares;  // parts of all panels, of which each is the work of one thread on a block
};

// Weights (outputs, channels, kernel, kernel), of any strides in elements.
struct ConvGemmWeights {
  const float* from = nullptr;
  std::int64_t strides[4] = {};
  std::int64_t outputs = 0, channels = 0;
  int kernel = 1;
  float* to = nullptr;  // see ConvGemmArgs::weights
};

// conv_gemm_panel: outputs whose weights lie side by side, known once the instruction set is.
// conv_gemm_rows: pixels that are multiplied at a time.
// conv_gemm_weights packs panels [begin, end).
// conv_gemm_scratch: bytes of the scratch memory of a thread.
// conv_gemm computes items [begin, end) of blocks * shares, counted through shares, then blocks.
#define FASTSCORE_DECLARE(isa)                                                                          \
  namespace isa {                                                                                       \
  std::int64_t conv_gemm_panel();                                                                       \
  std::int64_t conv_gemm_rows();                                                                        \
  void conv_gemm_weights(const ConvGemmWeights& weights, std::int64_t begin, std::int64_t end);         \
  std::int64_t conv_gemm_scratch(const ConvGemmArgs& args, const ConvGemmPlan& plan);                   \
  void conv_gemm(const ConvGemmArgs& args, const ConvGemmPlan& plan, char* scratch, std::int64_t begin, \
                 std::int64_t end);                                                                     \
  }
FASTSCORE_FOR_EACH_ISA(FASTSCORE_DECLARE)
#undef FASTSCORE_DECLARE

}  // namespace fastscore

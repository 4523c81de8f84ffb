// How the kernels of group_norm_silu share out a tensor. Internal to them.
#pragma once

#include "cuda/device.h"
#include "cuda/group_norm_silu.h"

namespace fastscore::cuda::group_norm {

using Args = GroupNormSiluArgs;
using Kind = GroupNormSiluKind;
using Parameter = fastscore::GroupNormSiluArgs::Parameter;

// Threads of a block, at most, and of one that holds a part of a column; and runs that each holds. float64 takes twice
// the registers.
constexpr int most_threads(std::size_t element_size) {
  return element_size < 8 ? 1024 : 512;
}
inline constexpr int part_threads = 256;
// As many as leave no register to be spilled, on any of the architectures that we build for.
constexpr int runs_per_thread(Kind kind) {
  return kind == Kind::forward ? 7 : 3;  // 3 of two tensors each
}

// What the first of two kernels leaves of each group, at most: numbers of a block.
inline constexpr int known_count = 4;

// An int that numbers from 0 to 2^31 - 1 are divided by: GPUs have no instruction for that, and what the compiler makes
// of a division takes registers (Granlund & Montgomery 1994, figure 4.1).
class Divisor {
 public:
  Divisor(int value = 1) : value_(value) {
    while ((std::int64_t{1} << shift_) < value) ++shift_;
    multiplier_ = static_cast<unsigned>((((std::uint64_t{1} << shift_) - value) << 32) / value + 1);
  }
  __host__ __device__ operator int() const { return value_; }
  friend __device__ __forceinline__ int operator/(int n, const Divisor& d) {
    return static_cast<int>((__umulhi(d.multiplier_, n) + n) >> d.shift_);
  }
  friend __device__ __forceinline__ int operator%(int n, const Divisor& d) { return n - n / d * d.value_; }

 private:
  int value_, shift_ = 0;
  unsigned multiplier_;
};

// A column is one group of one sample, or, channels last, so many groups side by side that rows of them fill sectors.
// It is cut into tiles of some channels by some pixels, which a block holds in registers: each thread some runs of 16
// bytes, of one channel (contiguous), or of the same channels (channels last).
//
// A column that is one tile takes one kernel, which reads it once. Any other takes two: the first leaves what it needs
// to know of each part, and the second adds that up and writes the result.
//
// The plan follows from the shape of a sample, the element type and the alignment alone. So do the bits of the results.
struct Plan {
  bool vectors = false;  // whole 16-byte words
  bool whole = false;    // one kernel
  int threads = 0;
  Divisor group_channels;
  Divisor inner;                      // threads side by side in memory
  int outer = 0;                      // rows of them
  Divisor stride;                     // pixels from run to run of a thread
  int column = 0, column_groups = 0;  // channels and groups of a column
  Divisor columns;                    // of a sample
  int tile_channels = 0;
  Divisor slots;  // threads with other channels
  int peers = 0;  // threads with the same
  int tile_pixels = 0;
  Divisor parts;                          // tiles along the pixels
  int tiles = 0, repeat = 0, blocks = 0;  // of a column: tiles; tiles that a block takes in turn; blocks

  // Scratch, in elements of the op dtype.
  std::int64_t statistics = 0;  // (batch, groups, known_count, blocks): what each block knows of a group
  std::int64_t means = 0;       // backward: (batch, groups, 2), toward_x and rest
  std::int64_t sums = 0;        // backward: (batch, parts, 3, channels), over pixels: of g, g * xhat, x + add - mean
};

Plan make_plan(const Args& args);

cudaError_t forward(const Args& args, const Plan& plan, cudaStream_t stream);
cudaError_t backward(const Args& args, const Plan& plan, cudaStream_t stream);
cudaError_t jvp(const Args& args, const Plan& plan, cudaStream_t stream);
cudaError_t parameter_gradients(const Args& args, const Plan& plan, cudaStream_t stream);

}  // namespace fastscore::cuda::group_norm

// Runs: what a thread of the steps reads, computes and writes at a time.
#pragma once

#include "cuda/device.h"
#include "fastscore/philox.h"

namespace fastscore::cuda {

// Threads of a block, and blocks that a multiprocessor has room for at once: at most 64 registers a thread.
inline constexpr int run_threads = 256, run_blocks = 4;

// Elements of a run: whole 16-byte words if they are consecutive in memory, and whole Philox blocks, or half of one.
template <class T, bool vectors>
inline constexpr int run_length = vectors ? vector_length<T> : vector_length<accumulator_t<T>>;

// The elements of a run as they lie in memory.
template <class T, int length>
struct Elements {
  T value[length];
};

// Consecutive logical elements of one sample. `vectors`: the samples are contiguous, and every run is whole and 16-byte
// aligned. A sample is `pixels` rows of `channels` in memory; element (p, c) has the logical index c * pixels + p.
template <class T, bool vectors>
class Run {
 public:
  static constexpr int length = run_length<T, vectors>;
  using Real = accumulator_t<T>;

  std::int64_t sample, first;  // `first` of its logical elements, a multiple of `length`

  template <class Args>
  __device__ __forceinline__ Run(const Args& args, std::int64_t runs_per_sample, std::int64_t index) {
    std::int64_t run;
    divide(index, runs_per_sample, sample, run);
    first = run * length;
    if constexpr (!vectors) {
      std::int64_t channel, pixel;
      if (args.channels > 1 && args.pixels % length == 0) {
        // Channels lie side by side, and so do the threads that read them.
        divide(run, args.channels, pixel, channel);
        pixel *= length;
        first = channel * args.pixels + pixel;
      } else {
        divide(first, args.pixels, channel, pixel);
      }
      const std::int64_t rest = args.pixels * args.channels - first;
      count_ = rest < length ? static_cast<int>(rest) : length;
      start_ = pixel * args.channels + channel;
      step_ = args.channels;
      jump_ = args.channels * args.pixels - 1;
      FASTSCORE_UNROLL
      for (int i = 0, wraps = 0; i < length; ++i) {
        wraps_ |= wraps << 2 * i;
        if (++pixel < args.pixels) continue;
        pixel = 0;
        ++wraps;
      }
    }
  }

  // `from` is an operand of the arguments: `data`, and the `stride` of the batch.
  template <class Operand>
  __device__ __forceinline__ Elements<T, length> load(const Operand& from) const {
    const T* data = static_cast<const T*>(from.data) + sample * from.stride;
    Elements<T, length> elements = {};
    if constexpr (vectors) {
      const Vec<T, length> vec = load_vec<length>(data + first);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) elements.value[i] = vec.value[i];
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i)
        if (i < count_) elements.value[i] = data[at(i)];
    }
    return elements;
  }

  // One bit for each of these elements: whether a mask of bytes has it set.
  template <class Operand>
  __device__ __forceinline__ unsigned marked(const Operand& mask) const {
    const std::uint8_t* data = static_cast<const std::uint8_t*>(mask.data) + sample * mask.stride;
    unsigned bits = 0;
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) {
      if constexpr (vectors) {
        bits |= (data[first + i] != 0 ? 1u : 0u) << i;
      } else {
        if (i < count_) bits |= (data[at(i)] != 0 ? 1u : 0u) << i;
      }
    }
    return bits;
  }

  __device__ __forceinline__ void store(void* to, std::int64_t batch_stride, const Real (&values)[length]) const {
    T* data = static_cast<T*>(to) + sample * batch_stride;
    if constexpr (vectors) {
      Vec<T, length> vec;
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) vec.value[i] = narrow<T>(values[i]);
      store_vec(data + first, vec);
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i)
        if (i < count_) data[at(i)] = narrow<T>(values[i]);
    }
  }

  // The noise of these elements; args.rng = (seed, draw), args.samples[b] is the index of sample b.
  template <class Args>
  __device__ __forceinline__ void draw(const Args& args, Real (&z)[length]) const {
    const std::int64_t seed = args.rng[0], index = args.samples[sample];
    const auto draw = static_cast<std::uint32_t>(args.rng[1]);
    if constexpr (length == 2) {
      const PhiloxBlock block = philox(seed, draw, index, static_cast<std::uint32_t>(first / 4));
      const bool half = (first & 2) != 0;
      normal2(block.word[half ? 2 : 0], block.word[half ? 3 : 1], z[0], z[1]);
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; i += 4) {
        Real four[4];
        normal4(philox(seed, draw, index, static_cast<std::uint32_t>((first + i) / 4)), four);
        FASTSCORE_UNROLL
        for (int j = 0; j < 4; ++j) z[i + j] = four[j];
      }
    }
  }

 private:
  // Where element i lies in the sample: `step_` behind the one before, but for the first pixel of a channel.
  __device__ __forceinline__ std::int64_t at(int i) const { return start_ + i * step_ - (wraps_ >> 2 * i & 3) * jump_; }

  int count_ = length;  // elements that there are
  int wraps_ = 0;       // two bits for each element: how many channels have begun since the first
  std::int64_t start_, step_, jump_;
};

// Whether `Run` may take whole words of these operands; one that is not there has the address null.
template <class T, class Args, class... Operands>
bool takes_vectors(const Args& args, const Operands&... operands) {
  constexpr int length = run_length<T, true>;
  return args.channels == 1 && args.pixels % length == 0 &&
         (takes_vec<T, length>(operands.data, operands.stride) && ...);
}

// Enqueues kernel(args, runs of a sample), whose blocks loop over the runs of all samples.
template <class Args>
cudaError_t launch_runs(void (*kernel)(Args, std::int64_t), const Args& args, int length, cudaStream_t stream) {
  const std::int64_t runs = (args.pixels * args.channels + length - 1) / length;
  unsigned blocks;
  if (const cudaError_t error = looping_grid((args.batch * runs + run_threads - 1) / run_threads, blocks)) return error;
  return launch(kernel, blocks, run_threads, 0, stream, args, runs);
}

}  // namespace fastscore::cuda

// A block takes a tile of one probe of one sample, 2048 elements in logical order, whatever the memory format: so the
// sums are the same bits in all of them. The signs of a tile are 64 words, which 16 threads make for the block.
#include "cuda/hutchinson.h"

#include "cuda/device.h"
#include "fastscore/philox.h"

namespace fastscore::cuda {
namespace {

constexpr int threads = 256, blocks = 4;  // of a multiprocessor at once: at most 64 registers a thread
constexpr int tile = 2048, words_of_tile = tile / 32;

// Consecutive elements that a thread takes at a time: whole 16-byte words and whole blocks of four normals.
template <class T>
constexpr int run_length = sizeof(T) == 2 ? 8 : 4;
template <class T>
constexpr int runs = tile / threads / run_length<T>;

// A tile of the noise. `vectors`: samples are contiguous, and every run is whole and aligned.
template <class T, bool vectors, class Args>
struct Tile {
  using Real = accumulator_t<T>;
  static constexpr int length = run_length<T>;

  const Args& args;
  std::int64_t k, sample, number;

  __device__ __forceinline__ Tile(const Args& args_, std::int64_t tiles, std::int64_t index) : args(args_) {
    std::int64_t row;
    divide(index, tiles, row, number);
    divide(row, args.batch, k, sample);
  }

  __device__ __forceinline__ PhiloxBlock block(std::int64_t which) const {
    return philox(args.rng[0], static_cast<std::uint32_t>(args.rng[1] + k), args.samples[sample],
                  static_cast<std::uint32_t>(which));
  }

  // All threads of the block must call it, and meet at a barrier before `noise` and after it.
  __device__ __forceinline__ void make_signs(SharedPointer<std::uint32_t> words) const {
    if (!args.signs || threadIdx.x >= words_of_tile / 4) return;
    const PhiloxBlock four = block(number * (words_of_tile / 4) + threadIdx.x);
    FASTSCORE_UNROLL
    for (int i = 0; i < 4; ++i) words[4 * threadIdx.x + i] = four.word[i];
  }

  // The first element of run r of this thread, in logical order.
  __device__ __forceinline__ std::int64_t first(int r) const {
    return number * tile + (std::int64_t{r} * threads + threadIdx.x) * length;
  }

  __device__ __forceinline__ void noise(SharedPointer<std::uint32_t> words, int r, Real (&eps)[length]) const {
    if (args.signs) {
      const int at = (r * threads + threadIdx.x) * length;
      const std::uint32_t bits = words[at / 32] >> at % 32;
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) eps[i] = (bits >> i & 1) != 0 ? Real{1} : Real{-1};
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; i += 4) {
        Real z[4];
        normal4(block((first(r) + i) / 4), z);
        FASTSCORE_UNROLL
        for (int j = 0; j < 4; ++j) eps[i + j] = z[j];
      }
    }
  }

  __device__ __forceinline__ bool there(std::int64_t element) const { return element < args.pixels * args.channels; }

  // Where an element lies in the sample.
  __device__ __forceinline__ std::int64_t place(std::int64_t element) const {
    std::int64_t channel, pixel;
    divide(element, args.pixels, channel, pixel);  // a contiguous sample is one channel
    return pixel * args.channels + channel;
  }
};

template <class T, bool vectors>
__global__ void __launch_bounds__(threads, blocks)
    hutchinson_product_kernel(const __grid_constant__ HutchinsonArgs args, std::int64_t tiles) {
  using Real = accumulator_t<T>;
  constexpr int length = run_length<T>;
  FASTSCORE_SHARED(std::uint32_t, words, words_of_tile);
  const std::int64_t count = args.probes * args.batch * tiles;
  for (std::int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    const Tile<T, vectors, HutchinsonArgs> here(args, tiles, index);
    const T* jvp = static_cast<const T*>(args.jvp) + here.k * args.probe_stride + here.sample * args.sample_stride;
    Vec<T, length> value[runs<T>] = {};  // on its way while the signs are made
    FASTSCORE_UNROLL
    for (int r = 0; r < runs<T>; ++r) {
      const std::int64_t first = here.first(r);
      if constexpr (vectors) {
        if (here.there(first)) value[r] = load_vec<length>(jvp + first);
      } else {
        FASTSCORE_UNROLL
        for (int i = 0; i < length; ++i)
          if (here.there(first + i)) value[r].value[i] = jvp[here.place(first + i)];
      }
    }
    here.make_signs(words);
    __syncthreads();
    double sum = 0;
    FASTSCORE_UNROLL
    for (int r = 0; r < runs<T>; ++r) {
      const std::int64_t first = here.first(r);
      if (!here.there(first)) continue;
      Real eps[length];
      here.noise(words, r, eps);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) sum += double{eps[i] * widen(value[r].value[i])};
    }
    sum = block_sum(sum);  // its barriers stand between this tile and the words of the next
    if (threadIdx.x == 0) args.scratch[index] = sum;
  }
}

// A warp adds up the tiles of one sample, probe by probe.
template <class Real>
__global__ void __launch_bounds__(threads)
    hutchinson_mean_kernel(const __grid_constant__ HutchinsonArgs args, std::int64_t tiles) {
  constexpr int warps = threads / warp_size;
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size;
  const std::int64_t stride = std::int64_t{gridDim.x} * warps;
  for (std::int64_t sample = std::int64_t{blockIdx.x} * warps + warp; sample < args.batch; sample += stride) {
    double total = 0;
    for (std::int64_t k = 0; k < args.probes; ++k) {
      const std::int64_t row = k * args.batch + sample;
      double sum = 0;
      for (std::int64_t i = lane; i < tiles; i += warp_size) sum += args.scratch[row * tiles + i];
      sum = warp_sum(sum);
      if (lane == 0) static_cast<Real*>(args.products)[row] = static_cast<Real>(sum);
      total += sum;
    }
    if (lane == 0) static_cast<Real*>(args.estimate)[sample] = static_cast<Real>(total / args.probes);
  }
}

template <class T, bool vectors>
__global__ void __launch_bounds__(threads, blocks)
    hutchinson_probe_kernel(const __grid_constant__ HutchinsonProbeArgs args, std::int64_t tiles) {
  using Real = accumulator_t<T>;
  constexpr int length = run_length<T>;
  FASTSCORE_SHARED(std::uint32_t, words, words_of_tile);
  const std::int64_t count = args.probes * args.batch * tiles;
  for (std::int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    const Tile<T, vectors, HutchinsonProbeArgs> here(args, tiles, index);
    const std::int64_t row = here.k * args.batch + here.sample;
    T* out = static_cast<T*>(args.out) + row * args.pixels * args.channels;
    const Real weight = args.weight == nullptr ? Real{1} : static_cast<const Real*>(args.weight)[row];
    here.make_signs(words);
    __syncthreads();
    FASTSCORE_UNROLL
    for (int r = 0; r < runs<T>; ++r) {
      const std::int64_t first = here.first(r);
      if (!here.there(first)) continue;
      Real eps[length];
      here.noise(words, r, eps);
      Vec<T, length> vec;
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) vec.value[i] = narrow<T>(weight * eps[i]);
      if constexpr (vectors) {
        reinterpret_cast<Vec<T, length>*>(out)[first / length] = vec;
      } else {
        FASTSCORE_UNROLL
        for (int i = 0; i < length; ++i)
          if (here.there(first + i)) out[here.place(first + i)] = vec.value[i];
      }
    }
    __syncthreads();  // before the words of the next tile
  }
}

std::int64_t tiles_of(std::int64_t size) {
  return (size + tile - 1) / tile;
}

template <class T>
cudaError_t launch_products(const HutchinsonArgs& args, cudaStream_t stream) {
  constexpr int length = run_length<T>, warps = threads / warp_size;
  const std::int64_t tiles = tiles_of(args.pixels * args.channels);
  const bool vectors = args.channels == 1 && args.pixels % length == 0 && args.probe_stride % length == 0 &&
                       takes_vec<T, length>(args.jvp, args.sample_stride);
  unsigned grid;
  if (const cudaError_t error = looping_grid(args.probes * args.batch * tiles, grid)) return error;
  const auto kernel = vectors ? hutchinson_product_kernel<T, true> : hutchinson_product_kernel<T, false>;
  if (const cudaError_t error = launch(kernel, grid, threads, 0, stream, args, tiles)) return error;
  if (const cudaError_t error = looping_grid((args.batch + warps - 1) / warps, grid)) return error;
  return launch(hutchinson_mean_kernel<accumulator_t<T>>, grid, threads, 0, stream, args, tiles);
}

template <class T>
cudaError_t launch_probe(const HutchinsonProbeArgs& args, cudaStream_t stream) {
  constexpr int length = run_length<T>;
  const std::int64_t size = args.pixels * args.channels, tiles = tiles_of(size);
  const bool vectors = args.channels == 1 && size % length == 0 && takes_vec<T, length>(args.out, size);
  unsigned grid;
  if (const cudaError_t error = looping_grid(args.probes * args.batch * tiles, grid)) return error;
  const auto kernel = vectors ? hutchinson_probe_kernel<T, true> : hutchinson_probe_kernel<T, false>;
  return launch(kernel, grid, threads, 0, stream, args, tiles);
}

}  // namespace

std::int64_t hutchinson_scratch(const HutchinsonArgs& args) {
  return args.probes * args.batch * tiles_of(args.pixels * args.channels);
}

cudaError_t hutchinson(const HutchinsonArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) { return launch_products<decltype(like)>(args, stream); });
}

cudaError_t hutchinson_probe(const HutchinsonProbeArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) { return launch_probe<decltype(like)>(args, stream); });
}

}  // namespace fastscore::cuda

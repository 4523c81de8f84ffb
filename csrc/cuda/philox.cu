// Noise as a tensor.
#include "cuda/philox.h"

#include "cuda/runs.h"

namespace fastscore::cuda {
namespace {

// A tensor of noise as a state without channels.
struct Noise {
  void* data;
  std::int64_t stride;
  const std::int64_t *rng, *samples;
  std::int64_t batch, pixels, channels;

  explicit Noise(const PhiloxArgs& args)
      : data(args.out),
        stride(args.size),
        rng(args.rng),
        samples(args.samples),
        batch(args.batch),
        pixels(args.size),
        channels(1) {}
};

template <class T, bool vectors>
__global__ void __launch_bounds__(run_threads, run_blocks)
    philox_normal_kernel(const __grid_constant__ Noise noise, std::int64_t runs_per_sample) {
  const std::int64_t stride = std::int64_t{gridDim.x} * run_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * run_threads + threadIdx.x; i < noise.batch * runs_per_sample;
       i += stride) {
    const Run<T, vectors> run(noise, runs_per_sample, i);
    accumulator_t<T> z[Run<T, vectors>::length];
    run.draw(noise, z);
    run.store(noise.data, noise.stride, z);
  }
}

// A warp draws 32 words, one to a lane, and writes their 1024 bits as signs.
constexpr int warp_signs = 32 * warp_size;

template <class T, bool vectors>
__global__ void __launch_bounds__(run_threads, run_blocks)
    philox_rademacher_kernel(const __grid_constant__ Noise noise, std::int64_t chunks_per_row) {
  constexpr int length = vectors ? vector_length<T> : 1;  // signs that a lane writes at a time
  const int lane = threadIdx.x % warp_size;
  const std::int64_t stride = std::int64_t{gridDim.x} * (run_threads / warp_size);
  for (std::int64_t i = std::int64_t{blockIdx.x} * (run_threads / warp_size) + threadIdx.x / warp_size;
       i < noise.batch * chunks_per_row; i += stride) {
    std::int64_t row, chunk;
    divide(i, chunks_per_row, row, chunk);
    const auto block = static_cast<std::uint32_t>(chunk * (warp_size / 4) + lane / 4);
    const PhiloxBlock four = philox(noise.rng[0], static_cast<std::uint32_t>(noise.rng[1]), noise.samples[row], block);
    const std::uint32_t even = (lane & 2) != 0 ? four.word[2] : four.word[0];
    const std::uint32_t odd = (lane & 2) != 0 ? four.word[3] : four.word[1];
    const std::uint32_t own = (lane & 1) != 0 ? odd : even;
    T* out = static_cast<T*>(noise.data) + row * noise.stride + chunk * warp_signs;
    const std::int64_t rest = noise.pixels - chunk * warp_signs;
    FASTSCORE_UNROLL
    for (int j = 0; j < warp_signs; j += warp_size * length) {
      const int first = j + lane * length;
      const std::uint32_t bits = __shfl_sync(full_warp, own, first / 32) >> first % 32;
      Vec<T> signs;
      FASTSCORE_UNROLL
      for (int k = 0; k < length; ++k) signs.value[k] = narrow<T>((bits >> k & 1) != 0 ? 1 : -1);
      if (first >= rest) continue;
      if constexpr (vectors) {
        store_vec(out + first, signs);
      } else {
        out[first] = signs.value[0];
      }
    }
  }
}

}  // namespace

cudaError_t philox_normal(const PhiloxArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    const Noise noise(args);
    const bool vectors = takes_vectors<T>(noise, noise);
    const auto kernel = vectors ? philox_normal_kernel<T, true> : philox_normal_kernel<T, false>;
    return launch_runs<Noise>(kernel, noise, vectors ? run_length<T, true> : run_length<T, false>, stream);
  });
}

cudaError_t philox_rademacher(const PhiloxArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    const Noise noise(args);
    const std::int64_t chunks = (args.size + warp_signs - 1) / warp_signs;
    constexpr int warps = run_threads / warp_size;
    unsigned blocks;
    if (const cudaError_t error = looping_grid((args.batch * chunks + warps - 1) / warps, blocks)) return error;
    const auto kernel =
        takes_vectors<T>(noise, noise) ? philox_rademacher_kernel<T, true> : philox_rademacher_kernel<T, false>;
    return launch(kernel, blocks, run_threads, 0, stream, noise, chunks);
  });
}

}  // namespace fastscore::cuda

// One pass over the state, noise drawn in registers.
#include "cuda/linear_step.h"

#include "cuda/device.h"
#include "fastscore/philox.h"

namespace fastscore::cuda {
namespace {

constexpr int threads = 256;

// A run: consecutive logical elements of one sample; whole Philox blocks and whole 16-byte words.
template <class T>
constexpr int run_length = sizeof(T) == 2 ? 8 : 4;

// `vectors`: the samples are contiguous, and every run is whole and 16-byte aligned.
template <class T, bool vectors>
__device__ __forceinline__ void step_run(const LinearStepArgs& args, std::int64_t runs_per_sample, std::int64_t index) {
  using Real = accumulator_t<T>;
  constexpr int length = run_length<T>;
  std::int64_t sample, first;
  divide(index, runs_per_sample, sample, first);
  first *= length;
  const std::int64_t rest = args.pixels * args.channels - first;
  const int n = vectors || rest >= length ? length : static_cast<int>(rest);

  [[maybe_unused]] std::int64_t at[length];  // where the elements lie in memory, if they are not consecutive
  if constexpr (!vectors) {
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) {
      std::int64_t channel, pixel;
      divide(first + i, args.pixels, channel, pixel);  // a contiguous sample is one channel
      at[i] = pixel * args.channels + channel;
    }
  }
  const auto load = [&](const LinearStepArgs::Operand& from, Real(&to)[length]) {
    const T* data = static_cast<const T*>(from.data) + sample * from.stride;
    if constexpr (vectors) {
      const auto vec = load_vec<length>(data + first);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) to[i] = widen(vec.value[i]);
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) to[i] = i < n ? widen(data[at[i]]) : Real{0};
    }
  };

  const Real* coefficient = static_cast<const Real*>(args.coefficients) + sample * args.coefficient_stride;
  const Real s = coefficient[args.coefficient_count - 1];
  Real value[length], term[length];
  load(args.x, value);
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i) value[i] *= coefficient[0];
  // Noise of weight zero is not looked at, so that it may be anything.
  const int terms = args.term_count - (args.noise_given && s == 0);
  for (int k = 0; k < terms; ++k) {
    load(args.terms[k], term);
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) value[i] = multiply_add(coefficient[k + 1], term[i], value[i]);
  }
  if (args.samples != nullptr && s != 0) {
    FASTSCORE_UNROLL
    for (int i = 0; i < length; i += 4) {
      Real z[4];
      const auto block = static_cast<std::uint32_t>((first + i) / 4);
      normal4(philox(args.rng[0], static_cast<std::uint32_t>(args.rng[1]), args.samples[sample], block), z);
      FASTSCORE_UNROLL
      for (int j = 0; j < 4; ++j) value[i + j] = multiply_add(s, z[j], value[i + j]);
    }
  }

  T* out = static_cast<T*>(args.out) + sample * args.out_stride;
  if constexpr (vectors) {
    Vec<T, length> vec;
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) vec.value[i] = narrow<T>(value[i]);
    store_vec(out + first, vec);
  } else {
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i)
      if (i < n) out[at[i]] = narrow<T>(value[i]);
  }
}

template <class T, bool vectors>
__global__ void __launch_bounds__(threads)
    linear_step_kernel(const __grid_constant__ LinearStepArgs args, std::int64_t runs_per_sample) {
  const std::int64_t stride = std::int64_t{gridDim.x} * threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x; i < args.batch * runs_per_sample; i += stride)
    step_run<T, vectors>(args, runs_per_sample, i);
}

template <class T>
bool takes_vectors(const LinearStepArgs& args) {
  constexpr int length = run_length<T>;
  bool good = args.channels == 1 && args.pixels % length == 0 && takes_vec<T, length>(args.out, args.out_stride) &&
              takes_vec<T, length>(args.x.data, args.x.stride);
  for (int k = 0; k < args.term_count; ++k)
    good = good && takes_vec<T, length>(args.terms[k].data, args.terms[k].stride);
  return good;
}

template <class T>
cudaError_t launch_for(const LinearStepArgs& args, cudaStream_t stream) {
  const std::int64_t runs = (args.pixels * args.channels + run_length<T> - 1) / run_length<T>;
  unsigned blocks;
  if (const cudaError_t error = looping_grid((args.batch * runs + threads - 1) / threads, blocks)) return error;
  const auto kernel = takes_vectors<T>(args) ? linear_step_kernel<T, true> : linear_step_kernel<T, false>;
  return launch(kernel, blocks, threads, 0, stream, args, runs);
}

}  // namespace

cudaError_t linear_step(const LinearStepArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case Dtype::f32:
      return launch_for<float>(args, stream);
    case Dtype::f64:
      return launch_for<double>(args, stream);
    case Dtype::bf16:
      return launch_for<__nv_bfloat16>(args, stream);
    case Dtype::f16:
      return launch_for<__half>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastscore::cuda

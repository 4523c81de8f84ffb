// One pass over the state: every thread handles runs of consecutive logical elements of one sample and draws their noise
// in registers. Includes no torch header, so that it compiles in seconds.
#include "cuda/linear_step.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "fastscore/philox.h"

namespace fastscore::cuda {
namespace {

template <class T>
struct Acc {
  using type = float;
};
template <>
struct Acc<double> {
  using type = double;
};

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T narrow(typename Acc<T>::type v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// Elements of a run: whole Philox blocks and whole 16-byte words.
template <class T>
inline constexpr int run_length = sizeof(T) == 2 ? 8 : 4;

template <class T>
struct alignas(16) Run {
  T value[run_length<T>];
};

// `vectors`: contiguous samples, every run whole and 16-byte aligned.
template <class T, bool vectors>
__global__ void __launch_bounds__(256) linear_step_kernel(const LinearStepArgs args) {
  using Real = typename Acc<T>::type;
  constexpr int length = run_length<T>;
  const std::int64_t size = args.pixels * args.channels;
  const std::int64_t runs = (size + length - 1) / length;
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;

  for (std::int64_t run = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; run < args.batch * runs; run += step) {
    const std::int64_t sample = run / runs, first = run % runs * length;
    const int n = vectors || size - first >= length ? length : static_cast<int>(size - first);

    std::int64_t at[length];  // where the elements lie in memory; unused, and free, where they are consecutive
    if constexpr (!vectors) {
#pragma unroll
      for (int i = 0; i < length; ++i) {
        const std::int64_t element = first + i;
        at[i] = args.channels == 1 ? element : element % args.pixels * args.channels + element / args.pixels;
      }
    }
    const auto load = [&](const LinearStepArgs::Operand& from, Real(&to)[length]) {
      const T* data = static_cast<const T*>(from.data) + sample * from.stride;
      if constexpr (vectors) {
        const Run<T> word = *reinterpret_cast<const Run<T>*>(data + first);
#pragma unroll
        for (int i = 0; i < length; ++i) to[i] = widen(word.value[i]);
      } else {
#pragma unroll
        for (int i = 0; i < length; ++i) to[i] = i < n ? widen(data[at[i]]) : Real{0};
      }
    };

    const Real* coefficient = static_cast<const Real*>(args.coefficients) + sample * args.coefficient_stride;
    const Real a = coefficient[0], s = coefficient[args.coefficient_count - 1];
    Real value[length], term[length];
    load(args.x, value);
#pragma unroll
    for (int i = 0; i < length; ++i) value[i] *= a;
    // Noise of weight zero is not looked at, so that it may be anything.
    const int terms = args.term_count - (args.noise_given && s == 0);
#pragma unroll
    for (int k = 0; k < max_history + 1; ++k) {
      if (k >= terms) break;
      const Real b = coefficient[k + 1];
      load(args.terms[k], term);
#pragma unroll
      for (int i = 0; i < length; ++i) value[i] = fma(b, term[i], value[i]);
    }
    if (args.samples != nullptr && s != 0) {
#pragma unroll
      for (int i = 0; i < length; i += 4) {
        Real z[4];
        normal4(philox(args.rng[0], static_cast<std::uint32_t>(args.rng[1]), args.samples[sample],
                       static_cast<std::uint32_t>((first + i) / 4)),
                z);
#pragma unroll
        for (int j = 0; j < 4; ++j) value[i + j] = fma(s, z[j], value[i + j]);
      }
    }

    T* out = static_cast<T*>(args.out) + sample * args.out_stride;
    if constexpr (vectors) {
      Run<T> word;
#pragma unroll
      for (int i = 0; i < length; ++i) word.value[i] = narrow<T>(value[i]);
      *reinterpret_cast<Run<T>*>(out + first) = word;
    } else {
#pragma unroll
      for (int i = 0; i < length; ++i)
        if (i < n) out[at[i]] = narrow<T>(value[i]);
    }
  }
}

template <class T>
bool aligned(const LinearStepArgs& args) {
  constexpr int length = run_length<T>;
  if (args.channels != 1 || args.pixels % length != 0) return false;
  const auto operand = [](const void* data, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % length == 0;
  };
  bool good = operand(args.out, args.out_stride) && operand(args.x.data, args.x.stride);
  for (int k = 0; k < args.term_count; ++k) good = good && operand(args.terms[k].data, args.terms[k].stride);
  return good;
}

template <class T>
cudaError_t launch(const LinearStepArgs& args, cudaStream_t stream) {
  constexpr int threads = 256;
  constexpr std::int64_t most_blocks = 132 * 16;  // enough for a large GPU; each thread then loops
  const std::int64_t runs = args.batch * ((args.pixels * args.channels + run_length<T> - 1) / run_length<T>);
  const std::int64_t blocks = (runs + threads - 1) / threads;
  const auto grid = static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks);
  if (aligned<T>(args)) {
    linear_step_kernel<T, true><<<grid, threads, 0, stream>>>(args);
  } else {
    linear_step_kernel<T, false><<<grid, threads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t linear_step(const LinearStepArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case Dtype::f32: return launch<float>(args, stream);
    case Dtype::f64: return launch<double>(args, stream);
    case Dtype::bf16: return launch<__nv_bfloat16>(args, stream);
    case Dtype::f16: return launch<__half>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastscore::cuda

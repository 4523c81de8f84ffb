// What the CUDA kernels share: conversions, 16-byte access, sums over a warp and a block, and the launch. nvcc compiles
// it, and so does g++ against the headers of tests/cuda_emulator, which run kernels on a CPU.
//
// Every result is deterministic: sums go through a fixed tree, never through atomics on floating point. Blocks are
// one-dimensional and made of whole warps.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "fastscore/dtype.h"
#include "fastscore/host_device.h"

// Shared memory is declared by these alone, and passed on as SharedPointer<T>: the emulator puts arrays in their place
// that check every access. FASTSCORE_DYNAMIC_SHARED is what the launch asked for, one per kernel.
#ifndef FASTSCORE_EMULATOR
#define FASTSCORE_SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define FASTSCORE_DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(16) unsigned char fastscore_dynamic_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(fastscore_dynamic_shared_memory)

namespace fastscore::cuda {
template <class T>
using SharedPointer = T*;
}
#else
namespace fastscore::cuda {
template <class T>
using SharedPointer = emulator::SharedPointer<T>;
}
#endif

namespace fastscore::cuda {

inline constexpr int warp_size = 32;
inline constexpr unsigned full_warp = 0xffffffffu;

// ------------------------------------------------------------------------------------------------ elements

// The type in which tensors of T are computed.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

__device__ __forceinline__ float widen(float v) {
  return v;
}
__device__ __forceinline__ double widen(double v) {
  return v;
}
__device__ __forceinline__ float widen(__half v) {
  return __half2float(v);
}
__device__ __forceinline__ float widen(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <class T>
__device__ __forceinline__ T narrow(accumulator_t<T> v) {
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

__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}

// Quotient and remainder of numbers that are not negative; 32-bit division where it is enough, because GPUs have no
// instruction for 64 bits.
__device__ __forceinline__ void divide(std::int64_t n, std::int64_t d, std::int64_t& quotient,
                                       std::int64_t& remainder) {
  if (((n | d) >> 31) == 0) {
    quotient = static_cast<std::uint32_t>(n) / static_cast<std::uint32_t>(d);
    remainder = static_cast<std::uint32_t>(n) % static_cast<std::uint32_t>(d);
  } else {
    quotient = n / d;
    remainder = n % d;
  }
}

// f(T{}) for the element type T that `dtype` names.
template <class F>
cudaError_t for_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f64:
      return f(double{});
    case Dtype::bf16:
      return f(__nv_bfloat16{});
    case Dtype::f16:
      return f(__half{});
  }
  return cudaErrorInvalidValue;
}

// ------------------------------------------------------------------------------------------------ 16-byte access

// How many elements a word of 16 bytes holds.
template <class T>
inline constexpr int vector_length = 16 / sizeof(T);

// n elements in whole words. `load_vec<n>` and `store_vec` take pointers to global and shared memory.
template <class T, int n = vector_length<T>>
struct alignas(16) Vec {
  static_assert(n * sizeof(T) % 16 == 0);
  T value[n];
};

template <int n, class T>
__device__ __forceinline__ Vec<T, n> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, n>*>(from);
}
template <class T, int n>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, n>& vec) {
  *reinterpret_cast<Vec<T, n>*>(to) = vec;
}
#ifdef FASTSCORE_EMULATOR
template <int n, class T>
Vec<std::remove_const_t<T>, n> load_vec(SharedPointer<T> from) {
  Vec<std::remove_const_t<T>, n> vec;
  from.check_aligned(16);
  for (int i = 0; i < n; ++i) vec.value[i] = from[i];
  return vec;
}
template <class T, int n>
void store_vec(SharedPointer<T> to, const Vec<T, n>& vec) {
  to.check_aligned(16);
  for (int i = 0; i < n; ++i) to[i] = vec.value[i];
}
#endif

// Whether n elements at every multiple of n, in samples `stride` elements apart, are whole words.
template <class T, int n = vector_length<T>>
bool takes_vec(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % n == 0;
}

// ------------------------------------------------------------------------------------------------ reductions

// The sum over a warp, the same bits in every lane.
template <class Real>
__device__ __forceinline__ Real warp_sum(Real v) {
  FASTSCORE_UNROLL
  for (int offset = warp_size / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(full_warp, v, offset);
  return v;
}

// The sums over a block, in every thread. All threads of the block must call it.
template <class Real, int n>
__device__ __forceinline__ void block_sum(Real (&v)[n]) {
  FASTSCORE_SHARED(Real, partial, (n * warp_size));
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
  FASTSCORE_UNROLL
  for (int i = 0; i < n; ++i) v[i] = warp_sum(v[i]);
  __syncthreads();  // an earlier call may still read `partial`
  if (lane == 0) {
    FASTSCORE_UNROLL
    for (int i = 0; i < n; ++i) partial[i * warp_size + warp] = v[i];
  }
  __syncthreads();
  FASTSCORE_UNROLL
  for (int i = 0; i < n; ++i) v[i] = warp_sum(lane < warps ? Real(partial[i * warp_size + lane]) : Real{0});
}
template <class Real>
__device__ __forceinline__ Real block_sum(Real v) {
  Real one[1] = {v};
  block_sum(one);
  return one[0];
}

// Count, mean and sum of squared deviations (Welford, 1962), which merge without cancellation (Chan, Golub, LeVeque,
// 1979).
template <class Real>
struct Moments {
  Real count, mean, m2;
};

template <class Real>
__device__ __forceinline__ void add(Moments<Real>& to, Real v) {
  to.count += 1;
  const Real delta = v - to.mean;
  to.mean += delta / to.count;
  to.m2 = multiply_add(delta, v - to.mean, to.m2);
}

template <class Real>
__device__ __forceinline__ Moments<Real> merge(const Moments<Real>& a, const Moments<Real>& b) {
  const Real count = a.count + b.count;
  if (count == 0) return a;
  const Real delta = b.mean - a.mean, share = b.count / count;
  return {count, multiply_add(delta, share, a.mean), a.m2 + b.m2 + delta * delta * a.count * share};
}

// The same bits in every lane: the lower lane stands left in every merge.
template <class Real>
__device__ __forceinline__ Moments<Real> warp_merge(Moments<Real> m) {
  FASTSCORE_UNROLL
  for (int offset = 1; offset < warp_size; offset *= 2) {
    const Moments<Real> other = {__shfl_xor_sync(full_warp, m.count, offset),
                                 __shfl_xor_sync(full_warp, m.mean, offset), __shfl_xor_sync(full_warp, m.m2, offset)};
    m = (threadIdx.x & offset) != 0 ? merge(other, m) : merge(m, other);
  }
  return m;
}

// The merge over a block, in every thread. All threads of the block must call it.
template <class Real>
__device__ __forceinline__ Moments<Real> block_merge(Moments<Real> m) {
  FASTSCORE_SHARED(Moments<Real>, partial, warp_size);
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
  m = warp_merge(m);
  __syncthreads();  // an earlier call may still read `partial`
  if (lane == 0) partial[warp] = m;
  __syncthreads();
  m = {0, 0, 0};
  if (lane < warps) m = partial[lane];
  return warp_merge(m);
}

// ------------------------------------------------------------------------------------------------ launch

// Enqueues the kernel; a grid without blocks has nothing to do. Much dynamic shared memory is asked for here:
// with the static arrays it may pass the 48 KiB that a block has without asking.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t dynamic_shared,
                   cudaStream_t stream, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (dynamic_shared > 32 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(dynamic_shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

// The number of blocks for `wanted` blocks of work where every block loops: at most 32 for each multiprocessor.
inline cudaError_t looping_grid(std::int64_t wanted, unsigned& blocks) {
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const std::int64_t most = std::int64_t{32} * multiprocessors;
  blocks = static_cast<unsigned>(wanted < most ? wanted : most);
  return error;
}

}  // namespace fastscore::cuda

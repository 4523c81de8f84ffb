// One pass over the state, noise drawn in registers. Includes no torch header, so that it compiles in seconds.
#include "cuda/linear_step.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fastscore {
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
__device__ __forceinline__ void narrow(float v, float* to) {
  *to = v;
}
__device__ __forceinline__ void narrow(double v, double* to) {
  *to = v;
}
__device__ __forceinline__ void narrow(float v, __half* to) {
  *to = __float2half_rn(v);
}
__device__ __forceinline__ void narrow(float v, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(v);
}
}  // namespace fastscore

#include "fastscore/linear_step_run.h"  // after the conversions it needs

namespace fastscore::cuda {
namespace {

constexpr int threads = 256;

template <class T, class Real, bool vectors>
__global__ void __launch_bounds__(threads)
    linear_step_kernel(const __grid_constant__ LinearStepArgs args, std::int64_t runs) {
  const std::int64_t step = std::int64_t{gridDim.x} * threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x; i < args.batch * runs; i += step)
    linear_step_run<T, Real, vectors>(args, runs, i);
}

template <class T, class Real>
cudaError_t launch(const LinearStepArgs& args, cudaStream_t stream) {
  constexpr std::int64_t most_blocks = 4096;  // fills a large GPU several times; each thread then loops
  const std::int64_t runs = runs_per_sample<T>(args);
  const std::int64_t blocks = (args.batch * runs + threads - 1) / threads;
  const auto grid = static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks);
  const auto kernel = takes_vectors<T>(args) ? linear_step_kernel<T, Real, true> : linear_step_kernel<T, Real, false>;
  kernel<<<grid, threads, 0, stream>>>(args, runs);
  return cudaGetLastError();
}

}  // namespace

cudaError_t linear_step(const LinearStepArgs& args, cudaStream_t stream) {
  switch (args.dtype) {
    case Dtype::f32:
      return launch<float, float>(args, stream);
    case Dtype::f64:
      return launch<double, double>(args, stream);
    case Dtype::bf16:
      return launch<__nv_bfloat16, float>(args, stream);
    case Dtype::f16:
      return launch<__half, float>(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace fastscore::cuda

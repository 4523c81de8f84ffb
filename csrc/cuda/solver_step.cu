// One pass over the state, noise drawn in registers.
#include "cuda/solver_step.h"

#include "cuda/runs.h"

namespace fastscore::cuda {
namespace {

__device__ __forceinline__ float exponential(float v) {
  return expf(v);
}
__device__ __forceinline__ double exponential(double v) {
  return ::exp(v);
}

// NaN is not clamped.
template <class Real>
__device__ __forceinline__ Real clamp(Real v, Real bound) {
  return v > bound ? bound : v < -bound ? -bound : v;
}

template <class T, bool vectors>
__device__ __forceinline__ void step_run(const SolverStepArgs& args, const Run<T, vectors>& run) {
  constexpr int length = Run<T, vectors>::length;
  using Real = accumulator_t<T>;
  const Real* row = static_cast<const Real*>(args.coefficients) + run.sample * args.coefficient_stride;
  const Real s = row[args.history_count + 5], e = row[args.history_count + 6];
  // Noise of weight zero is not looked at, so that it may be anything.
  const bool given = s != 0 && args.noise.data != nullptr, drawn = s != 0 && args.samples != nullptr;

  const Elements<T, length> x = run.load(args.x), h = run.load(args.h);
  Real value[length];
  {
    Real m[length];
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) {
      const Real xi = widen(x.value[i]);
      m[i] = clamp(multiply_add(row[1], widen(h.value[i]), row[0] * xi), row[2]);
      value[i] = multiply_add(row[4], m[i], row[3] * xi);
    }
    if (args.m.data != nullptr) run.store(args.m.data, args.m.stride, m);
  }
  for (int k = 0; k < args.history_count; ++k) {
    const Elements<T, length> earlier = run.load(args.history[k]);
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) value[i] = multiply_add(row[k + 5], widen(earlier.value[i]), value[i]);
  }
  if (given || drawn) {
    Real z[length];
    if (drawn) {
      run.draw(args, z);
    } else {
      const Elements<T, length> noise = run.load(args.noise);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) z[i] = widen(noise.value[i]);
    }
    if (args.exponent.data != nullptr) {
      const Elements<T, length> exponent = run.load(args.exponent);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) z[i] *= exponential(e * widen(exponent.value[i]));
    }
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) value[i] = multiply_add(s, z[i], value[i]);
  }
  run.store(args.out.data, args.out.stride, value);
}

template <class T, bool vectors>
__global__ void __launch_bounds__(run_threads, run_blocks)
    solver_step_kernel(const __grid_constant__ SolverStepArgs args, std::int64_t runs_per_sample) {
  const std::int64_t stride = std::int64_t{gridDim.x} * run_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * run_threads + threadIdx.x; i < args.batch * runs_per_sample;
       i += stride)
    step_run<T, vectors>(args, Run<T, vectors>(args, runs_per_sample, i));
}

}  // namespace

cudaError_t solver_step(const SolverStepArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    static_assert(solver_max_history == 3);
    const bool vectors = takes_vectors<T>(args, args.out, args.m, args.x, args.h, args.history[0], args.history[1],
                                          args.history[2], args.exponent, args.noise);
    const auto kernel = vectors ? solver_step_kernel<T, true> : solver_step_kernel<T, false>;
    return launch_runs<SolverStepArgs>(kernel, args, vectors ? run_length<T, true> : run_length<T, false>, stream);
  });
}

}  // namespace fastscore::cuda

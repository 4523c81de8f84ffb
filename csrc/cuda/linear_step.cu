// One pass over the state, noise drawn in registers.
#include "cuda/linear_step.h"

#include "cuda/runs.h"

namespace fastscore::cuda {
namespace {

template <class T, bool vectors>
__device__ __forceinline__ void step_run(const LinearStepArgs& args, const Run<T, vectors>& run) {
  constexpr int length = Run<T, vectors>::length;
  using Real = accumulator_t<T>;
  const Real* row = static_cast<const Real*>(args.coefficients) + run.sample * args.coefficient_stride;
  const Real s = row[args.coefficient_count - 1];

  Real value[length];
  const Elements<T, length> x = run.load(args.x);
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i) value[i] = row[0] * widen(x.value[i]);
  // Noise of weight zero is not looked at, so that it may be anything.
  const int terms = args.term_count - (args.noise_given && s == 0);
  for (int k = 0; k < terms; ++k) {
    const Elements<T, length> term = run.load(args.terms[k]);
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) value[i] = multiply_add(row[k + 1], widen(term.value[i]), value[i]);
  }
  if (args.samples != nullptr && s != 0) {
    Real z[length];
    run.draw(args, z);
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) value[i] = multiply_add(s, z[i], value[i]);
  }
  run.store(args.out, args.out_stride, value);
}

template <class T, bool vectors>
__global__ void __launch_bounds__(run_threads, run_blocks)
    linear_step_kernel(const __grid_constant__ LinearStepArgs args, std::int64_t runs_per_sample) {
  const std::int64_t stride = std::int64_t{gridDim.x} * run_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * run_threads + threadIdx.x; i < args.batch * runs_per_sample;
       i += stride)
    step_run<T, vectors>(args, Run<T, vectors>(args, runs_per_sample, i));
}

}  // namespace

cudaError_t linear_step(const LinearStepArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    bool vectors = takes_vectors<T>(args, args.x, LinearStepArgs::Operand{args.out, args.out_stride});
    for (int k = 0; k < args.term_count; ++k) vectors = vectors && takes_vectors<T>(args, args.terms[k]);
    const auto kernel = vectors ? linear_step_kernel<T, true> : linear_step_kernel<T, false>;
    return launch_runs<LinearStepArgs>(kernel, args, vectors ? run_length<T, true> : run_length<T, false>, stream);
  });
}

}  // namespace fastscore::cuda

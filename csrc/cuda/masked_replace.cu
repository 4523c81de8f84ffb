// One pass over the mask; state and image are touched, and noise is drawn in registers, in runs with a known element.
#include "cuda/masked_replace.h"

#include "cuda/runs.h"

namespace fastscore::cuda {
namespace {

template <class T, bool vectors>
__device__ __forceinline__ void replace_run(const MaskedReplaceArgs& args, const Run<T, vectors>& run) {
  constexpr int length = Run<T, vectors>::length;
  using Real = accumulator_t<T>;
  const unsigned marked = run.marked(args.mask);
  if (marked == 0) return;
  const Real* row = static_cast<const Real*>(args.coefficients) + run.sample * args.coefficient_stride;
  const Real s = row[1];

  Real value[length];
  const Elements<T, length> known = run.load(args.known);
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i) value[i] = row[0] * widen(known.value[i]);
  if (s != 0) {  // noise of weight zero is not looked at, so that it may be anything
    if (args.noise.data != nullptr) {
      const Elements<T, length> z = run.load(args.noise);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) value[i] = multiply_add(s, widen(z.value[i]), value[i]);
    } else if (args.samples != nullptr) {
      Real z[length];
      run.draw(args, z);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) value[i] = multiply_add(s, z[i], value[i]);
    }
  }
  const Elements<T, length> x = run.load(MaskedReplaceArgs::Operand{args.x, args.x_stride});
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i)
    if ((marked >> i & 1) == 0) value[i] = widen(x.value[i]);
  run.store(args.x, args.x_stride, value);
}

template <class T, bool vectors>
__global__ void __launch_bounds__(run_threads, run_blocks)
    masked_replace_kernel(const __grid_constant__ MaskedReplaceArgs args, std::int64_t runs_per_sample) {
  const std::int64_t stride = std::int64_t{gridDim.x} * run_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * run_threads + threadIdx.x; i < args.batch * runs_per_sample;
       i += stride)
    replace_run<T, vectors>(args, Run<T, vectors>(args, runs_per_sample, i));
}

}  // namespace

cudaError_t masked_replace(const MaskedReplaceArgs& args, cudaStream_t stream) {
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    const MaskedReplaceArgs::Operand x{args.x, args.x_stride};
    const bool vectors = takes_vectors<T>(args, x, args.known, args.noise);
    const auto kernel = vectors ? masked_replace_kernel<T, true> : masked_replace_kernel<T, false>;
    return launch_runs<MaskedReplaceArgs>(kernel, args, vectors ? run_length<T, true> : run_length<T, false>, stream);
  });
}

}  // namespace fastscore::cuda

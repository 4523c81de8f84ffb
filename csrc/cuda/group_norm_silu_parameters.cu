// Gradients of the parameters, from the sums over pixels that backward left: those that samples share are added up over
// the batch in a fixed order.
#include "cuda/group_norm_silu_tile.h"

namespace fastscore::cuda::group_norm {
namespace {

// A block with the gradients of shared parameters: 32 channels, and so many rows of sums at a time.
constexpr int lanes = 32, rows_at_a_time = 16, threads = lanes * rows_at_a_time;
constexpr int parameter_count = 5;

struct Wanted {
  void* out[parameter_count];  // null where nothing is wanted: weight, bias, add, scale, shift
  Parameter like[parameter_count];
  std::int64_t sample_blocks;  // those before them have gradients of each sample
};

// What a row of sums, one of the parts of sample n, gives to the gradients of channel c. These few numbers are added up
// in float64: there may be many of them, and those of `add` cancel.
template <class Real>
__device__ __forceinline__ void add_row(const Args& args, const Plan& plan, std::int64_t n, int part, int c,
                                        double (&to)[parameter_count]) {
  const std::int64_t group = n * args.groups + c / plan.group_channels;
  const Real* means = static_cast<const Real*>(args.scratch) + plan.statistics + 2 * group;
  const Real* sums = static_cast<const Real*>(args.scratch) + plan.statistics + plan.means +
                     (n * plan.parts + part) * 3 * args.channels + c;
  const double g = sums[0], g_xhat = sums[args.channels];
  const double weight = number(args.value.weight, n, c, Real{1}), bias = number(args.value.bias, n, c, Real{0});
  const double gain = 1.0 + number(args.value.scale, n, c, Real{0});
  to[0] = multiply_add(gain, g_xhat, to[0]);
  to[1] = multiply_add(gain, g, to[1]);
  if (args.gradients.add != nullptr) {
    const double rstd = static_cast<const Real*>(args.rstd)[group], d = sums[2 * args.channels];
    const std::int64_t left = args.pixels - std::int64_t{part} * plan.tile_pixels;
    const double pixels = static_cast<double>(left < plan.tile_pixels ? left : plan.tile_pixels);
    to[2] += multiply_add(rstd * (weight * gain), g, multiply_add(double{means[0]}, d, means[1] * pixels));
  }
  to[3] += multiply_add(weight, g_xhat, bias * g);
  to[4] += g;
}

template <class Real>
__device__ __forceinline__ void write(const Wanted& wanted, int k, std::int64_t at, double sum) {
  if constexpr (sizeof(Real) == 8) {
    static_cast<double*>(wanted.out[k])[at] = sum;
  } else {
    const auto v = static_cast<float>(sum);
    if (wanted.like[k].dtype == Dtype::bf16)
      static_cast<__nv_bfloat16*>(wanted.out[k])[at] = narrow<__nv_bfloat16>(v);
    else if (wanted.like[k].dtype == Dtype::f16)
      static_cast<__half*>(wanted.out[k])[at] = narrow<__half>(v);
    else
      static_cast<float*>(wanted.out[k])[at] = v;
  }
}

template <class Real>
__global__ void __launch_bounds__(threads)
    group_norm_silu_parameters_kernel(const __grid_constant__ Args args, const __grid_constant__ Plan plan,
                                      const __grid_constant__ Wanted wanted) {
  FASTSCORE_SHARED(double, partial, (rows_at_a_time * lanes));
  const int thread = static_cast<int>(threadIdx.x), channels = static_cast<int>(args.channels);
  double total[parameter_count] = {};
  if (blockIdx.x < wanted.sample_blocks) {
    // A thread is a channel of a sample.
    const std::int64_t at = std::int64_t{blockIdx.x} * threads + thread;
    if (at < args.batch * channels) {
      std::int64_t n, c;
      divide(at, channels, n, c);
      for (int part = 0; part < plan.parts; ++part) add_row<Real>(args, plan, n, part, static_cast<int>(c), total);
      FASTSCORE_UNROLL
      for (int k = 0; k < parameter_count; ++k)
        if (wanted.out[k] != nullptr && wanted.like[k].stride != 0) write<Real>(wanted, k, at, total[k]);
    }
  } else {
    const int lane = thread % lanes, line = thread / lanes;
    const int c = static_cast<int>(blockIdx.x - wanted.sample_blocks) * lanes + lane;
    if (c < channels)
      for (std::int64_t row = line; row < args.batch * plan.parts; row += rows_at_a_time) {
        std::int64_t n, part;
        divide(row, plan.parts, n, part);
        add_row<Real>(args, plan, n, static_cast<int>(part), c, total);
      }
    FASTSCORE_UNROLL
    for (int k = 0; k < parameter_count; ++k) {
      if (wanted.out[k] == nullptr || wanted.like[k].stride != 0) continue;
      __syncthreads();
      partial[thread] = total[k];
      __syncthreads();
      if (line == 0 && c < channels) {
        double sum = 0;
        for (int i = 0; i < rows_at_a_time; ++i) sum += partial[i * lanes + lane];
        write<Real>(wanted, k, c, sum);
      }
    }
  }
}

}  // namespace

cudaError_t parameter_gradients(const Args& args, const Plan& plan, cudaStream_t stream) {
  const auto& to = args.gradients;
  const auto& value = args.value;
  Wanted wanted = {{to.weight, to.bias, to.add, to.scale, to.shift},
                   {value.weight, value.bias, value.add, value.scale, value.shift},
                   0};
  bool per_sample = false, shared = false;
  for (int k = 0; k < parameter_count; ++k)
    if (wanted.out[k] != nullptr) (wanted.like[k].stride != 0 ? per_sample : shared) = true;
  if (per_sample) wanted.sample_blocks = (args.batch * args.channels + threads - 1) / threads;
  const std::int64_t shared_blocks = shared ? (args.channels + lanes - 1) / lanes : 0;
  const auto kernel =
      args.dtype == Dtype::f64 ? group_norm_silu_parameters_kernel<double> : group_norm_silu_parameters_kernel<float>;
  return launch(kernel, static_cast<unsigned>(wanted.sample_blocks + shared_blocks), threads, 0, stream, args, plan,
                wanted);
}

}  // namespace fastscore::cuda::group_norm

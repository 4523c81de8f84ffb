// One pass over the data, which leaves sums of tiles, and a second kernel that adds those up.
#include "cuda/error_norm.h"

#include "cuda/runs.h"
#include "cuda/sample_sums.h"

namespace fastscore::cuda {
namespace {

constexpr int warps = sum_threads / warp_size;

// b where a is NaN.
template <class Real>
__device__ __forceinline__ Real larger_of(Real a, Real b) {
  return a > b ? a : b;
}
template <class Real>
__device__ __forceinline__ Real magnitude(Real v) {
  return larger_of(v, -v);
}

template <class T, bool vectors>
__global__ void __launch_bounds__(sum_threads, sum_blocks)
    error_norm_sums_kernel(const __grid_constant__ ErrorNormArgs args, const __grid_constant__ SumTiles tiles) {
  using Real = accumulator_t<T>;
  using Own = Piece<T, vectors>;
  constexpr int length = Own::length;
  FASTSCORE_SHARED(double, squares, tile_quads);
  const Real atol = static_cast<Real>(args.atol), rtol = static_cast<Real>(args.rtol);
  for (std::int64_t t = blockIdx.x; t < args.batch * tiles.per_sample; t += gridDim.x) {
    const SumTile tile(tiles, t);
    const Real* row = static_cast<const Real*>(args.coefficients) + tile.sample * args.coefficient_stride;
    for (int i = threadIdx.x; i < Own::count_of(tiles, tile); i += sum_threads) {
      const Own piece(tiles, tile, i);
      Real e[length], u[length], v[length];
      piece.load(args.terms[0], e);
      FASTSCORE_UNROLL
      for (int j = 0; j < length; ++j) e[j] *= row[0];
      for (int k = 1; k < args.term_count; ++k) {
        piece.load(args.terms[k], u);
        FASTSCORE_UNROLL
        for (int j = 0; j < length; ++j) e[j] = multiply_add(row[k], u[j], e[j]);
      }
      piece.load(args.u, u);
      piece.load(args.v, v);
      FASTSCORE_UNROLL
      for (int first = 0; first < length; first += 4) {
        double sum = 0;
        FASTSCORE_UNROLL
        for (int j = first; j < first + 4; ++j) {
          const Real size = rtol * larger_of(magnitude(u[j]), magnitude(v[j]));
          const Real scale = args.larger ? larger_of(atol, size) : atol + size;
          // No error is none at any scale. 0 * y is NaN where y is not finite: the larger of two may lose a NaN of u,
          // and e / inf is 0.
          const Real unknown = multiply_add(Real{0}, scale, 0 * u[j]);
          const double ratio = static_cast<double>((e[j] == 0 ? Real{0} : e[j] / scale) + unknown);
          sum = multiply_add(ratio, ratio, sum);
        }
        squares[piece.quad + first / 4] = sum;
      }
    }
    double total[1];
    sum_quads<double>({squares}, tile.quads, total);
    if (threadIdx.x == 0) args.scratch[t] = total[0];
  }
}

// One warp to a sample.
template <class Real>
__global__ void __launch_bounds__(sum_threads)
    error_norm_kernel(const double* sums, std::int64_t batch, std::int64_t tiles, double elements, Real* out) {
  const std::int64_t stride = std::int64_t{gridDim.x} * warps;
  for (std::int64_t b = std::int64_t{blockIdx.x} * warps + threadIdx.x / warp_size; b < batch; b += stride) {
    double total[1];
    sum_tiles(sums + b * tiles, tiles, total);
    if (threadIdx.x % warp_size == 0) out[b] = static_cast<Real>(::sqrt(total[0] / elements));
  }
}

SumTiles tiles_of(const ErrorNormArgs& args) {
  return {args.channels, args.pixels, args.channels_last};
}

}  // namespace

std::int64_t error_norm_scratch(const ErrorNormArgs& args) {
  return args.batch * tiles_of(args).per_sample;
}

cudaError_t error_norm(const ErrorNormArgs& args, cudaStream_t stream) {
  const SumTiles tiles = tiles_of(args);
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    using Real = accumulator_t<T>;
    unsigned blocks;
    cudaError_t error = looping_grid(args.batch * tiles.per_sample, blocks);
    if (error != cudaSuccess) return error;
    bool vectors = sums_take_vectors<T>(tiles, args.u, args.v);
    for (int k = 0; k < args.term_count; ++k) vectors = vectors && sums_take_vectors<T>(tiles, args.terms[k]);
    error = launch(vectors ? error_norm_sums_kernel<T, true> : error_norm_sums_kernel<T, false>, blocks, sum_threads, 0,
                   stream, args, tiles);
    if (error != cudaSuccess) return error;
    error = looping_grid((args.batch + warps - 1) / warps, blocks);
    if (error != cudaSuccess) return error;
    const double elements = static_cast<double>(args.pixels * args.channels);
    return launch(error_norm_kernel<Real>, blocks, sum_threads, 0, stream, args.scratch, args.batch, tiles.per_sample,
                  elements, static_cast<Real*>(args.out));
  });
}

}  // namespace fastscore::cuda

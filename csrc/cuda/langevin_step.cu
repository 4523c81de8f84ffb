// Three kernels: sums of squares of tiles, norms of samples, and the step. Drawn noise is drawn twice and never stored:
// a step reads x and h twice and writes once, five times the size of the state.
#include "cuda/langevin_step.h"

#include "cuda/runs.h"
#include "cuda/sample_sums.h"

namespace fastscore::cuda {
namespace {

constexpr int warps = sum_threads / warp_size;

// Sum of squares of the first `count` normals of a Philox block. A cosine and a sine of one angle make the square of
// their radius.
template <class Real>
__device__ __forceinline__ Real squared_norm(const PhiloxBlock& block, std::int64_t count) {
  Real total = 0;
  FASTSCORE_UNROLL
  for (int pair = 0; pair < 2; ++pair) {
    Real part = 0, unused;
    if (count >= 2 * pair + 2) {
      squared_radius(block.word[2 * pair], part);
    } else if (count == 2 * pair + 1) {
      normal2(block.word[2 * pair], block.word[2 * pair + 1], part, unused);
      part *= part;
    }
    total += part;
  }
  return total;
}

// scratch: per tile of each sample the sums of z^2 and g^2, then per sample the norms of z and g.
template <class T, bool vectors>
__global__ void __launch_bounds__(sum_threads, sum_blocks)
    langevin_sums_kernel(const __grid_constant__ LangevinStepArgs args, const __grid_constant__ SumTiles tiles) {
  using Real = accumulator_t<T>;
  using Own = Piece<T, vectors>;
  FASTSCORE_SHARED(Real, z2, tile_quads);
  FASTSCORE_SHARED(Real, g2, tile_quads);
  for (std::int64_t t = blockIdx.x; t < args.batch * tiles.per_sample; t += gridDim.x) {
    const SumTile tile(tiles, t);
    const Real* row = static_cast<const Real*>(args.coefficients) + tile.sample * args.coefficient_stride;
    const Real p = row[0], q = row[1];
    for (int i = threadIdx.x; i < Own::count_of(tiles, tile); i += sum_threads) {
      const Own piece(tiles, tile, i);
      Real x[Own::length], h[Own::length];
      piece.load(args.x, x);
      piece.load(args.h, h);
      FASTSCORE_UNROLL
      for (int k = 0; k < Own::length; k += 4) {
        Real sum = 0;
        FASTSCORE_UNROLL
        for (int j = k; j < k + 4; ++j) {
          const Real g = multiply_add(q, h[j], p * x[j]);
          sum = multiply_add(g, g, sum);
        }
        g2[piece.quad + k / 4] = sum;
      }
      if (args.noise.data != nullptr) {
        piece.load(args.noise, x);
        FASTSCORE_UNROLL
        for (int k = 0; k < Own::length; k += 4) {
          Real sum = 0;
          FASTSCORE_UNROLL
          for (int j = k; j < k + 4; ++j) sum = multiply_add(x[j], x[j], sum);
          z2[piece.quad + k / 4] = sum;
        }
      }
    }
    if (args.noise.data == nullptr) {
      // The noise lies nowhere: its quads are Philox blocks.
      const std::int64_t seed = args.rng[0], index = args.samples[tile.sample];
      const auto draw = static_cast<std::uint32_t>(args.rng[1]);
      const std::int64_t first = tile.part * (tiles.tile_pixels / 4 * tiles.channels);
      for (int i = threadIdx.x; i < tile.quads; i += sum_threads) {
        const std::int64_t rest = tiles.pixels * tiles.channels - 4 * (first + i);
        z2[i] = squared_norm<Real>(philox(seed, draw, index, static_cast<std::uint32_t>(first + i)), rest);
      }
    }
    double total[2];
    sum_quads<Real>({z2, g2}, tile.quads, total);
    if (threadIdx.x == 0) {
      args.scratch[2 * t] = total[0];
      args.scratch[2 * t + 1] = total[1];
    }
  }
}

// One warp to a sample.
__global__ void __launch_bounds__(sum_threads)
    langevin_norms_kernel(std::int64_t batch, std::int64_t tiles, double* scratch) {
  double* norms = scratch + 2 * batch * tiles;
  const std::int64_t stride = std::int64_t{gridDim.x} * warps;
  for (std::int64_t b = std::int64_t{blockIdx.x} * warps + threadIdx.x / warp_size; b < batch; b += stride) {
    double total[2];
    sum_tiles(scratch + 2 * b * tiles, tiles, total);
    if (threadIdx.x % warp_size == 0) {
      norms[2 * b] = ::sqrt(total[0]);
      norms[2 * b + 1] = ::sqrt(total[1]);
    }
  }
}

// |z| / |g|, zero where there is no direction.
template <class Real>
__device__ __forceinline__ Real ratio_of(Real z, Real g) {
  return g == 0 ? Real{0} : z / g;
}

__device__ __forceinline__ float square_root(float v) {
  return sqrtf(v);
}
__device__ __forceinline__ double square_root(double v) {
  return ::sqrt(v);
}

template <class T, bool vectors>
__device__ __forceinline__ void step_run(const LangevinStepArgs& args, const Run<T, vectors>& run,
                                         accumulator_t<T> ratio) {
  constexpr int length = Run<T, vectors>::length;
  using Real = accumulator_t<T>;
  const Real* row = static_cast<const Real*>(args.coefficients) + run.sample * args.coefficient_stride;
  const Real p = row[0], q = row[1], tau = row[2];
  const Real step = tau * ratio * ratio, width = square_root(2 * tau) * ratio;
  const Elements<T, length> x = run.load(args.x), h = run.load(args.h);
  Real value[length], z[length];
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i) {
    const Real xi = widen(x.value[i]);
    value[i] = multiply_add(step, multiply_add(q, widen(h.value[i]), p * xi), xi);
  }
  if (args.noise.data != nullptr) {
    const Elements<T, length> noise = run.load(args.noise);
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) z[i] = widen(noise.value[i]);
  } else {
    run.draw(args, z);
  }
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i) value[i] = multiply_add(width, z[i], value[i]);
  run.store(args.out, args.out_stride, value);
}

template <class T, bool vectors>
__global__ void __launch_bounds__(run_threads, run_blocks)
    langevin_step_kernel(const __grid_constant__ LangevinStepArgs args, const double* norms,
                         std::int64_t runs_per_sample) {
  using Real = accumulator_t<T>;
  Real together = 0;
  if (!args.per_sample) {
    // Every block adds the norms up for itself, which is less than another kernel would cost.
    double total[2] = {0, 0};
    for (std::int64_t b = threadIdx.x; b < args.batch; b += run_threads) {
      total[0] += norms[2 * b];
      total[1] += norms[2 * b + 1];
    }
    block_sum(total);
    together = static_cast<Real>(ratio_of(total[0], total[1]));
  }
  const std::int64_t stride = std::int64_t{gridDim.x} * run_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * run_threads + threadIdx.x; i < args.batch * runs_per_sample;
       i += stride) {
    const Run<T, vectors> run(args, runs_per_sample, i);
    const double* own = norms + 2 * run.sample;
    const Real ratio = args.per_sample ? ratio_of(static_cast<Real>(own[0]), static_cast<Real>(own[1])) : together;
    step_run<T, vectors>(args, run, ratio);
  }
}

SumTiles tiles_of(const LangevinStepArgs& args) {
  return {args.planes, args.pixels * args.channels / args.planes, args.channels > 1};
}

}  // namespace

std::int64_t langevin_step_scratch(const LangevinStepArgs& args) {
  return 2 * args.batch * (tiles_of(args).per_sample + 1);
}

cudaError_t langevin_step(const LangevinStepArgs& args, cudaStream_t stream) {
  const SumTiles tiles = tiles_of(args);
  const double* norms = args.scratch + 2 * args.batch * tiles.per_sample;
  return for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    unsigned blocks;
    cudaError_t error = looping_grid(args.batch * tiles.per_sample, blocks);
    if (error != cudaSuccess) return error;
    const bool whole = sums_take_vectors<T>(tiles, args.x, args.h, args.noise);
    error = launch(whole ? langevin_sums_kernel<T, true> : langevin_sums_kernel<T, false>, blocks, sum_threads, 0,
                   stream, args, tiles);
    if (error != cudaSuccess) return error;
    error = looping_grid((args.batch + warps - 1) / warps, blocks);
    if (error != cudaSuccess) return error;
    error = launch(langevin_norms_kernel, blocks, sum_threads, 0, stream, args.batch, tiles.per_sample, args.scratch);
    if (error != cudaSuccess) return error;

    const bool vectors =
        takes_vectors<T>(args, LangevinStepArgs::Operand{args.out, args.out_stride}, args.x, args.h, args.noise);
    const std::int64_t length = vectors ? run_length<T, true> : run_length<T, false>;
    const std::int64_t runs = (args.pixels * args.channels + length - 1) / length;
    error = looping_grid((args.batch * runs + run_threads - 1) / run_threads, blocks);
    if (error != cudaSuccess) return error;
    return launch(vectors ? langevin_step_kernel<T, true> : langevin_step_kernel<T, false>, blocks, run_threads, 0,
                  stream, args, norms, runs);
  });
}

}  // namespace fastscore::cuda

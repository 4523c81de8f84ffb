// The gradient of x and the tangent of y. Both apply the derivative of xhat, u -> rstd (u - mean(u) - xhat mean(u
// xhat)), to the gradient of xhat or to the tangent of x + add: two sums over each group, then one pass that writes.
#include "cuda/group_norm_silu_tile.h"

namespace fastscore::cuda::group_norm {
namespace {

// Numbers of a channel. With d = x - mean + added = xhat / rstd and v = slope * d + beta, the argument of SiLU,
//   backward   grad_x = slope * g + toward * d + rest             with g = dL/dv,
//   jvp        v_t = slope * (x_t - center_t) + toward * d + rest.
// Before the sums are known, center_t = -add_t, and toward is the tangent of weight * (1 + scale).
enum Row { mean, added, slope, beta, toward, rest, center_t, row_count };

// Sums over a channel. backward: of g, g * d, d; jvp: of x_t + add_t, (x_t + add_t) * d.
template <Kind kind>
constexpr int sum_count = kind == Kind::backward ? 3 : 2;
// Of a group: the first two sums of its channels, backward times slope.
enum Total { first, second };

template <class T, Path path>
using TileOf = Tile<T, path, runs_per_thread(Kind::backward)>;
template <class Real>
using SharedOf = Shared<Real, row_count>;
template <class T>
constexpr int block_size = most_threads(sizeof(T));

// What a block holds of x and of the gradient of y, or the tangent of x. Where it loses nothing, backward puts g in the
// place of the gradient of y.
template <class TileT>
struct Held {
  typename TileT::Runs x, other;
};
template <class T>
constexpr bool keeps_g = sizeof(T) == sizeof(accumulator_t<T>);

template <class Real>
__device__ __forceinline__ Real statistic(const void* data, const Args& args, const Plan& plan, int n, int channel) {
  return static_cast<const Real*>(data)[std::int64_t{n} * args.groups + channel / plan.group_channels];
}

// The numbers that follow from the parameters alone.
template <Kind kind, class TileT, class Real>
__device__ __forceinline__ void start(const Args& args, const Plan& plan, const TileT& tile,
                                      const SharedOf<Real>& shared, int n) {
  FASTSCORE_KEEP_ROLLED
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const int channel = tile.first + c;
    const Real gain = 1 + number(args.value.scale, n, channel, Real{0});
    const Real weight = number(args.value.weight, n, channel, Real{1});
    const Real bias = number(args.value.bias, n, channel, Real{0});
    shared.row(mean)[c] = statistic<Real>(args.mean, args, plan, n, channel);
    shared.row(added)[c] = number(args.value.add, n, channel, Real{0});
    shared.row(slope)[c] = statistic<Real>(args.rstd, args, plan, n, channel) * (weight * gain);
    shared.row(beta)[c] = multiply_add(bias, gain, number(args.value.shift, n, channel, Real{0}));
    if constexpr (kind == Kind::jvp) {
      const Real scale_t = number(args.tangent.scale, n, channel, Real{0});
      shared.row(toward)[c] = multiply_add(number(args.tangent.weight, n, channel, Real{0}), gain, weight * scale_t);
      shared.row(rest)[c] = multiply_add(bias, scale_t,
                                         multiply_add(number(args.tangent.bias, n, channel, Real{0}), gain,
                                                      number(args.tangent.shift, n, channel, Real{0})));
      shared.row(center_t)[c] = -number(args.tangent.add, n, channel, Real{0});
    }
  }
}

// The sums of a tile: over its channels, and from these over its groups, into the totals.
template <Kind kind, class T, class TileT, class Real>
__device__ __forceinline__ void tile_sums(const TileT& tile, const SharedOf<Real>& shared, Held<TileT>& held,
                                          bool with_silu) {
  channel_sums<sum_count<kind>>(tile, shared, [&](int i, Real(&s)[sum_count<kind>]) {
    if (tile.count == 0) return;
    const int c = tile.channel + i;
    const Real m = shared.row(mean)[c], z = shared.row(added)[c];
    if constexpr (kind == Kind::backward) {
      const Real a = shared.row(slope)[c], b = shared.row(beta)[c];
      const auto add = [&](Real g, Real d) {
        s[0] += g;
        s[1] = multiply_add(g, d, s[1]);
        s[2] += d;
      };
      if (with_silu)
        tile.each(i, [&](int k, int e) {
          const Real d = held.x[k].get(e) - m + z;
          const Real g = held.other[k].get(e) * silu_slope<T>(multiply_add(a, d, b));
          if constexpr (keeps_g<T>) held.other[k].set(e, g);
          add(g, d);
        });
      else
        tile.each(i, [&](int k, int e) { add(held.other[k].get(e), held.x[k].get(e) - m + z); });
    } else {
      const Real center = shared.row(center_t)[c];
      tile.each(i, [&](int k, int e) {
        const Real d = held.x[k].get(e) - m + z, u = held.other[k].get(e) - center;
        s[0] += u;
        s[1] = multiply_add(u, d, s[1]);
      });
    }
  });
  group_sums<2>(
      tile, shared, [&](int c) { return kind == Kind::backward ? Real(shared.row(slope)[c]) : Real{1}; },
      [&](int k, int g, Real sum) { shared.total(k)[g] = sum; });
  __syncthreads();
}

// The numbers that follow from the totals of the groups.
template <Kind kind, class TileT, class Real>
__device__ __forceinline__ void finish(const Args& args, const Plan& plan, const TileT& tile,
                                       const SharedOf<Real>& shared, int n, bool write_means) {
  const Real count = static_cast<Real>(static_cast<int>(plan.group_channels)) * static_cast<Real>(args.pixels);
  FASTSCORE_KEEP_ROLLED
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const int g = c / plan.group_channels, channel = tile.first + c;
    const Real rstd = statistic<Real>(args.rstd, args, plan, n, channel);
    const Real along = shared.total(first)[g] / count, across = shared.total(second)[g] / count;
    if constexpr (kind == Kind::backward) {
      shared.row(toward)[c] = -rstd * rstd * across;
      shared.row(rest)[c] = -along;
      if (write_means && plan.means > 0 && channel % plan.group_channels == 0) {
        Real* to = static_cast<Real*>(args.scratch) + plan.statistics +
                   2 * (std::int64_t{n} * args.groups + channel / plan.group_channels);
        to[0] = -rstd * rstd * across;
        to[1] = -along;
      }
    } else {
      // mean(z_t xhat) = rstd * across
      shared.row(toward)[c] = rstd * (shared.row(toward)[c] - shared.row(slope)[c] * (rstd * across));
      shared.row(center_t)[c] = along + shared.row(center_t)[c];
    }
  }
  __syncthreads();
}

// `at_v`: the slope of SiLU still has to be multiplied in.
template <Kind kind, class T, class TileT, class Real>
__device__ __forceinline__ void apply(const TileT& tile, const SharedOf<Real>& shared, Held<TileT>& held, bool at_v) {
  if (tile.count == 0) return;
  FASTSCORE_UNROLL
  for (int i = 0; i < TileT::columns; ++i) {
    const int c = tile.channel + i;
    const Real m = shared.row(mean)[c], z = shared.row(added)[c], a = shared.row(slope)[c], b = shared.row(beta)[c];
    const Real t = shared.row(toward)[c], r = shared.row(rest)[c];
    Real center = 0;
    if constexpr (kind == Kind::jvp) center = shared.row(center_t)[c];
    const auto linear = [&](Real u, Real d) { return multiply_add(a, u - center, multiply_add(t, d, r)); };
    if (at_v)
      tile.each(i, [&](int k, int e) {
        const Real d = held.x[k].get(e) - m + z, u = held.other[k].get(e), at = silu_slope<T>(multiply_add(a, d, b));
        held.x[k].set(e, kind == Kind::backward ? linear(u * at, d) : linear(u, d) * at);
      });
    else
      tile.each(i, [&](int k, int e) { held.x[k].set(e, linear(held.other[k].get(e), held.x[k].get(e) - m + z)); });
  }
}

// The sums over the pixels of a tile, for the gradients of the parameters: of g, g * xhat, d.
template <class TileT, class Real>
__device__ __forceinline__ void keep_sums(const Args& args, const Plan& plan, const TileT& tile,
                                          const SharedOf<Real>& shared, int n, int t) {
  const int channels = static_cast<int>(args.channels);
  Real* to = static_cast<Real*>(args.scratch) + plan.statistics + plan.means +
             (std::int64_t{n} * plan.parts + t % plan.parts) * 3 * channels + tile.first;
  FASTSCORE_KEEP_ROLLED
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    to[c] = shared.sum(0)[c];
    to[channels + c] = shared.sum(1)[c] * statistic<Real>(args.rstd, args, plan, n, tile.first + c);
    to[2 * channels + c] = shared.sum(2)[c];
  }
}

template <Kind kind, class T, Path path>
__global__ void __launch_bounds__(block_size<T>, 1)
    group_norm_silu_derivative_kernel(const __grid_constant__ Args args, const __grid_constant__ Plan plan,
                                      Phase phase) {
  using Real = accumulator_t<T>;
  using TileT = TileOf<T, path>;
  FASTSCORE_DYNAMIC_SHARED(Real, memory);
  const SharedOf<Real> shared(memory, plan, sum_count<kind>);
  const Turn turn(plan, phase);
  const int thread = static_cast<int>(threadIdx.x);
  for (int t = turn.begin; t < turn.end; ++t) {
    const TileT tile(args, plan, turn.column, t);
    Held<TileT> held;
    const std::int64_t base = TileT::base(args, plan, turn.column, t);
    tile.load(held.x, static_cast<const T*>(args.x.data) + std::int64_t{turn.sample} * args.x.stride + base);
    if (args.other.data != nullptr)
      tile.load(held.other,
                static_cast<const T*>(args.other.data) + std::int64_t{turn.sample} * args.other.stride + base);
    else
      tile.clear(held.other);
    const int groups = tile.groups;
    const auto of_group = [&](int g) {
      return static_cast<Real*>(args.scratch) +
             (std::int64_t{turn.sample} * args.groups + tile.first / plan.group_channels + g) * known_count *
                 plan.blocks;
    };
    if (phase == Phase::apply && t == turn.begin)
      team_sums<Real>(
          2 * groups, plan.blocks,
          [&](int task, int j) {
            const int k = task < groups ? 0 : 1;
            return of_group(task - k * groups)[k * plan.blocks + j];
          },
          [&](int task, Real sum) {
            const int k = task < groups ? 0 : 1;
            shared.total(k)[task - k * groups] = sum;
          });
    __syncthreads();
    start<kind>(args, plan, tile, shared, turn.sample);
    if (phase != Phase::apply) {
      tile_sums<kind, T>(tile, shared, held, args.silu);
      if constexpr (kind == Kind::backward)
        if (plan.sums > 0) keep_sums(args, plan, tile, shared, turn.sample, t);
    } else {
      __syncthreads();
    }
    if (phase == Phase::know) {
      if (thread < groups) {
        // A thread keeps what is known of one group.
        Real* to = of_group(thread) + turn.block;
        const bool begins = t == turn.begin;
        to[0] = shared.total(first)[thread] + (begins ? Real{0} : to[0]);
        to[plan.blocks] = shared.total(second)[thread] + (begins ? Real{0} : to[plan.blocks]);
      }
    } else {
      finish<kind>(args, plan, tile, shared, turn.sample, t % plan.parts == 0);
      const bool holds_g = kind == Kind::backward && keeps_g<T> && phase == Phase::all;
      apply<kind, T>(tile, shared, held, args.silu && !holds_g);
      T* out = static_cast<T*>(args.out) + std::int64_t{turn.sample} * args.channels * args.pixels;
      tile.store(out + TileT::base(args, plan, turn.column, t), held.x);
    }
  }
}

template <Kind kind>
cudaError_t launch_kind(const Args& args, const Plan& plan, cudaStream_t stream) {
  return for_call(args, plan, [&](auto like, auto path) {
    using T = decltype(like);
    const std::size_t shared = shared_bytes<TileOf<T, path()>>(plan, row_count, sum_count<kind>);
    return launch_phases(group_norm_silu_derivative_kernel<kind, T, path()>, args, plan, shared, stream);
  });
}

}  // namespace

cudaError_t backward(const Args& args, const Plan& plan, cudaStream_t stream) {
  if (const cudaError_t error = launch_kind<Kind::backward>(args, plan, stream)) return error;
  return parameter_gradients(args, plan, stream);
}

cudaError_t jvp(const Args& args, const Plan& plan, cudaStream_t stream) {
  return launch_kind<Kind::jvp>(args, plan, stream);
}

}  // namespace fastscore::cuda::group_norm

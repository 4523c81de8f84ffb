// y = silu(xhat * weight * (1 + scale) + ...), from x read once where a column is one tile, else twice.
//
// The statistics are those of t = x - pivot + add with the first element of a group as its pivot: what is rounded then
// is of the size of the deviations, whatever the mean. They are taken in two passes over registers; the second also
// finds what the mean lost to rounding. Tiles are merged after Chan, Golub & LeVeque (1979).
#include "cuda/group_norm_silu_tile.h"

namespace fastscore::cuda::group_norm {
namespace {

// Numbers of a channel: y = silu(slope * (x - center) + offset). Before that is known, t = x - center - offset.
enum Row { center, slope, offset, row_count };
// Of a group: the mean of t is mean + lower.
enum Total { mean, lower, squares };
constexpr int sum_count = 2;

template <class T, Path path>
using TileOf = Tile<T, path, runs_per_thread(Kind::forward)>;
template <class Real>
using SharedOf = Shared<Real, row_count>;
template <class T>
constexpr int block_size = most_threads(sizeof(T));

// center = pivot, and offset = -add.
template <class TileT, class Real, class T>
__device__ __forceinline__ void start(const Args& args, const Plan& plan, const TileT& tile,
                                      const SharedOf<Real>& shared, const T* x, int n) {
  FASTSCORE_KEEP_ROLLED
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const std::int64_t first = (tile.first + c) / plan.group_channels * plan.group_channels;
    shared.row(center)[c] = widen(x[args.channels_last ? first : first * args.pixels]);
    shared.row(offset)[c] = -number(args.value.add, n, tile.first + c, Real{0});
  }
}

// Mean and squared deviations of t in each group of the tile, into the totals. `start` must have been called.
template <class TileT, class Real>
__device__ __forceinline__ void tile_moments(const TileT& tile, const SharedOf<Real>& shared,
                                             const typename TileT::Runs& x) {
  const Real share = 1 / (static_cast<Real>(tile.group_channels) * static_cast<Real>(tile.pixels));
  const auto one = [](int) { return Real{1}; };
  channel_sums<1>(tile, shared, [&](int i, Real(&s)[1]) {
    if (tile.count == 0) return;
    const Real p = shared.row(center)[tile.channel + i], o = shared.row(offset)[tile.channel + i];
    tile.each(i, [&](int k, int e) { s[0] += x[k].get(e) - p - o; });
  });
  group_sums<1>(tile, shared, one, [&](int, int g, Real sum) { shared.total(mean)[g] = sum * share; });
  __syncthreads();
  FASTSCORE_KEEP_ROLLED
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x)
    shared.row(slope)[c] = shared.row(offset)[c] + shared.total(mean)[c / shared.plan.group_channels];
  channel_sums<2>(tile, shared, [&](int i, Real(&s)[2]) {
    if (tile.count == 0) return;
    const Real p = shared.row(center)[tile.channel + i], o = shared.row(slope)[tile.channel + i];
    tile.each(i, [&](int k, int e) {
      const Real deviation = x[k].get(e) - p - o;
      s[0] += deviation;
      s[1] = multiply_add(deviation, deviation, s[1]);
    });
  });
  group_sums<2>(tile, shared, one, [&](int k, int g, Real sum) {
    if (k == 0)
      shared.total(lower)[g] = sum * share;
    else
      shared.total(squares)[g] = sum;
  });
  __syncthreads();
}

// slope and offset of the channels of a tile, from the totals of its groups; writes the statistics too, if asked.
template <class TileT, class Real>
__device__ __forceinline__ void finish(const Args& args, const Plan& plan, const TileT& tile,
                                       const SharedOf<Real>& shared, int n, bool write_statistics) {
  const Divisor& d = plan.group_channels;
  const Real count = static_cast<Real>(static_cast<int>(d)) * static_cast<Real>(args.pixels);
  FASTSCORE_KEEP_ROLLED
  for (int c = threadIdx.x; c < tile.channels; c += blockDim.x) {
    const int g = c / plan.group_channels, channel = tile.first + c;
    const Real rstd = 1 / square_root(shared.total(squares)[g] / count + static_cast<Real>(args.eps));
    // The mean of x in this channel of xhat = 0, rounded, and what it lost.
    Real lost_first, lost_second;
    const Real average = exact_sum(Real(shared.row(center)[c]), Real(shared.total(mean)[g]), lost_first);
    lost_first += shared.total(lower)[g];
    if (write_statistics && channel % d == 0) {
      const std::int64_t at = std::int64_t{n} * args.groups + channel / d;
      static_cast<Real*>(args.mean)[at] = average + lost_first;
      static_cast<Real*>(args.rstd)[at] = rstd;
    }
    const Real at_zero = exact_sum(average, Real(shared.row(offset)[c]), lost_second);
    const Real gain = 1 + number(args.value.scale, n, channel, Real{0});
    const Real a = rstd * (number(args.value.weight, n, channel, Real{1}) * gain);
    const Real b =
        multiply_add(number(args.value.bias, n, channel, Real{0}), gain, number(args.value.shift, n, channel, Real{0}));
    shared.row(center)[c] = at_zero;
    shared.row(slope)[c] = a;
    shared.row(offset)[c] = multiply_add(-a, lost_first + lost_second, b);
  }
  __syncthreads();
}

template <bool with_silu, class T, class TileT, class Real>
__device__ __forceinline__ void apply(const TileT& tile, const SharedOf<Real>& shared, typename TileT::Runs& x) {
  if (tile.count == 0) return;
  FASTSCORE_UNROLL
  for (int i = 0; i < TileT::columns; ++i) {
    const int c = tile.channel + i;
    const Real p = shared.row(center)[c], a = shared.row(slope)[c], b = shared.row(offset)[c];
    tile.each(i, [&](int k, int e) {
      const Real v = multiply_add(a, x[k].get(e) - p, b);
      x[k].set(e, with_silu ? silu<T>(v) : v);
    });
  }
}

// What the blocks of a column know of a group: [k * blocks + block].
template <class Real>
__device__ __forceinline__ Real* statistics_of(const Args& args, const Plan& plan, int n, int channel) {
  const std::int64_t group = std::int64_t{n} * args.groups + channel / plan.group_channels;
  return static_cast<Real*>(args.scratch) + group * known_count * plan.blocks;
}

// Merges what the blocks of a column know of its groups, into the totals.
template <class Real>
__device__ __forceinline__ void merge_blocks(const Args& args, const Plan& plan, const SharedOf<Real>& shared,
                                             const Real* known, int groups) {
  const Real share = 1 / (static_cast<Real>(static_cast<int>(plan.group_channels)) * static_cast<Real>(args.pixels));
  const int blocks = plan.blocks;
  const auto of = [&](int g, int j) { return known + g * known_count * blocks + j; };
  team_sums<Real>(
      groups, blocks, [&](int g, int j) { return of(g, j)[0] * of(g, j)[blocks]; },
      [&](int g, Real sum) { shared.total(mean)[g] = sum * share; });
  __syncthreads();
  team_sums<Real>(
      2 * groups, blocks,
      [&](int task, int j) {
        const int g = task < groups ? task : task - groups;
        const Real* from = of(g, j);
        const Real away = (from[blocks] - shared.total(mean)[g]) + from[2 * blocks], weighted = from[0] * away;
        return task < groups ? weighted : multiply_add(weighted, away, from[3 * blocks]);
      },
      [&](int task, Real sum) {
        if (task < groups)
          shared.total(lower)[task] = sum * share;
        else
          shared.total(squares)[task - groups] = sum;
      });
}

// One more tile, of `count` elements in each group, for what a block knows of group g; it is kept in `to`.
template <class Real>
__device__ __forceinline__ void add_tile(Real* to, int blocks, bool first, const SharedOf<Real>& shared, int g,
                                         Real count) {
  Real average = shared.total(mean)[g], rest = shared.total(lower)[g], sum = shared.total(squares)[g];
  if (!first) {
    const Real before = to[0], total = before + count, share = count / total;
    const Real away = (average - to[blocks]) + (rest - to[2 * blocks]);
    sum += to[3 * blocks] + away * away * before * share;
    Real lost;
    average = exact_sum(to[blocks], away * share, lost);
    rest = to[2 * blocks] + lost;
    count = total;
  }
  to[0] = count;
  to[blocks] = average;
  to[2 * blocks] = rest;
  to[3 * blocks] = sum;
}

template <class T, Path path>
__global__ void __launch_bounds__(block_size<T>, 1)
    group_norm_silu_forward_kernel(const __grid_constant__ Args args, const __grid_constant__ Plan plan, Phase phase) {
  using Real = accumulator_t<T>;
  using TileT = TileOf<T, path>;
  FASTSCORE_DYNAMIC_SHARED(Real, memory);
  const SharedOf<Real> shared(memory, plan, sum_count);
  const Turn turn(plan, phase);
  const auto sample = [&] { return static_cast<const T*>(args.x.data) + std::int64_t{turn.sample} * args.x.stride; };
  for (int t = turn.begin; t < turn.end; ++t) {
    const TileT tile(args, plan, turn.column, t);
    typename TileT::Runs x;
    tile.load(x, sample() + TileT::base(args, plan, turn.column, t));
    const int groups = tile.groups, g = static_cast<int>(threadIdx.x);
    if (phase == Phase::apply && t == turn.begin)
      merge_blocks(args, plan, shared, statistics_of<Real>(args, plan, turn.sample, tile.first), groups);
    __syncthreads();
    start(args, plan, tile, shared, sample(), turn.sample);
    if (phase != Phase::apply) tile_moments(tile, shared, x);
    if (phase == Phase::know) {
      if (g < groups)
        add_tile(statistics_of<Real>(args, plan, turn.sample, tile.first) + g * known_count * plan.blocks + turn.block,
                 plan.blocks, t == turn.begin, shared, g,
                 static_cast<Real>(tile.group_channels) * static_cast<Real>(tile.pixels));
    } else {
      finish(args, plan, tile, shared, turn.sample, t % plan.parts == 0);
      if (args.silu)
        apply<true, T>(tile, shared, x);
      else
        apply<false, T>(tile, shared, x);
      T* out = static_cast<T*>(args.out) + std::int64_t{turn.sample} * args.channels * args.pixels;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
      // Found again: two registers too few are left for what the tile knows. Older targets spill more this way.
      asm volatile("" : "+r"(t));
      TileT(args, plan, turn.column, t).store(out + TileT::base(args, plan, turn.column, t), x);
#else
      tile.store(out + TileT::base(args, plan, turn.column, t), x);
#endif
    }
  }
}

}  // namespace

cudaError_t forward(const Args& args, const Plan& plan, cudaStream_t stream) {
  return for_call(args, plan, [&](auto like, auto path) {
    using T = decltype(like);
    const std::size_t shared = shared_bytes<TileOf<T, path()>>(plan, row_count, sum_count);
    return launch_phases(group_norm_silu_forward_kernel<T, path()>, args, plan, shared, stream);
  });
}

}  // namespace fastscore::cuda::group_norm

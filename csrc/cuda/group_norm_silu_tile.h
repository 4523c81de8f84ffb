// A tile of group_norm_silu: what of it each thread holds, and the sums over it. Internal to the kernels.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "cuda/group_norm_silu_plan.h"
#include "cuda/runs.h"

// Loops with few turns, whose unrolling would take the registers that hold the tile.
#define FASTSCORE_KEEP_ROLLED _Pragma("unroll 1")

namespace fastscore::cuda::group_norm {

// How threads lie over a tile: in runs of 16 bytes, along the pixels or along the channels, or element by element.
enum class Path { contiguous, channels_last, elements };

// What a thread reads at a time, in as many registers as it takes in memory. Elements of 16 bits stay packed in words:
// as an array of their own each would take a register.
template <class T, int length>
struct alignas(length == 1 ? sizeof(T) : 16) Run {
  T value[length];

  __device__ __forceinline__ accumulator_t<T> get(int e) const { return widen(value[e]); }
  __device__ __forceinline__ void set(int e, accumulator_t<T> v) { value[e] = narrow<T>(v); }
};
template <class T>
  requires(sizeof(T) == 2)
struct alignas(16) Run<T, 8> {
  unsigned word[4];

  __device__ __forceinline__ float get(int e) const {
    const auto bits = static_cast<unsigned short>(word[e / 2] >> 16 * (e % 2) & 0xffff);
    if constexpr (std::is_same_v<T, __half>)
      return widen(__ushort_as_half(bits));
    else
      return widen(__ushort_as_bfloat16(bits));
  }
  __device__ __forceinline__ void set(int e, float v) {
    unsigned bits;
    if constexpr (std::is_same_v<T, __half>)
      bits = __half_as_ushort(narrow<T>(v));
    else
      bits = __bfloat16_as_ushort(narrow<T>(v));
    word[e / 2] = e % 2 == 0 ? (word[e / 2] & 0xffff0000u) | bits : (word[e / 2] & 0xffffu) | bits << 16;
  }
};

// `columns`: the channels of a thread. Element e of run k belongs to channel `channel`, or, channels last, channel + e.
template <class T, Path path, int depth>
struct Tile {
  using Real = accumulator_t<T>;
  static constexpr int length = path == Path::elements ? 1 : vector_length<T>;
  static constexpr int columns = path == Path::channels_last ? length : 1;
  using Runs = Run<T, length>[depth];

  int first, channels, groups, group_channels;  // its channels in the sample; groups, and the channels of each
  int pixels;
  int channel;         // of this thread, counted from `first`
  int slot, position;  // of this thread among those with other channels, and among those with the same
  int count;           // runs of this thread
  int offset, step;    // of the first run, counted from `base`; from run to run

  __device__ __forceinline__ Tile(const Args& args, const Plan& plan, int column, int tile) {
    const int slab = tile / plan.parts, part = tile - slab * plan.parts;
    const int channels_of_x = static_cast<int>(args.channels);
    first = column * plan.column + slab * plan.tile_channels;
    channels = min(plan.tile_channels, min((column + 1) * plan.column, channels_of_x) - first);
    group_channels = min(channels, static_cast<int>(plan.group_channels));
    groups = group_channels < plan.group_channels ? 1 : channels / plan.group_channels;
    const std::int64_t begin = std::int64_t{part} * plan.tile_pixels, left = args.pixels - begin;
    pixels = left < plan.tile_pixels ? static_cast<int>(left) : plan.tile_pixels;

    const int row = static_cast<int>(threadIdx.x) / plan.inner, lane = static_cast<int>(threadIdx.x) % plan.inner;
    const bool last = path == Path::channels_last || (path == Path::elements && args.channels_last);
    const int along = last ? row : lane * length;  // pixel of the first run, counted from `begin`
    slot = last ? lane : row;
    position = last ? row : lane;
    channel = slot * columns;
    const int there = pixels - along;
    count = row < plan.outer && channel < channels && there > 0 ? (there + plan.stride - 1) / plan.stride : 0;
    const std::int64_t pixel_step = last ? args.channels : 1, channel_step = last ? 1 : args.pixels;
    offset = along * static_cast<int>(pixel_step) + channel * static_cast<int>(channel_step);
    step = plan.stride * static_cast<int>(pixel_step);
  }

  // Where a tile begins in its sample. Computed again where it is needed: kept, it would take registers all the time.
  static __device__ __forceinline__ std::int64_t base(const Args& args, const Plan& plan, int column, int tile) {
    const int slab = tile / plan.parts, part = tile - slab * plan.parts;
    const std::int64_t pixel = std::int64_t{part} * plan.tile_pixels,
                       channel = column * plan.column + slab * plan.tile_channels;
    return path == Path::channels_last || (path == Path::elements && args.channels_last)
               ? pixel * args.channels + channel
               : channel * args.pixels + pixel;
  }

  // f(k, e) for the elements that this thread holds of its channel i.
  template <class F>
  __device__ __forceinline__ void each(int i, F f) const {
    FASTSCORE_UNROLL
    for (int k = 0; k < depth; ++k) {
      if (k >= count) continue;
      FASTSCORE_UNROLL
      for (int e = 0; e < length / columns; ++e) f(k, i + e);
    }
  }

  static __device__ __forceinline__ void clear(Runs& runs) {
    FASTSCORE_UNROLL
    for (int k = 0; k < depth; ++k) runs[k] = {};
  }

  __device__ __forceinline__ void load(Runs& to, const T* tile) const {
    clear(to);
    const T* from = tile + offset;
    FASTSCORE_UNROLL
    for (int k = 0; k < depth; ++k) {
      if (k >= count) continue;
      to[k] = *reinterpret_cast<const Run<T, length>*>(from);
      from += step;
    }
  }

  __device__ __forceinline__ void store(T* tile, const Runs& from) const {
    T* to = tile + offset;
    FASTSCORE_UNROLL
    for (int k = 0; k < depth; ++k) {
      if (k >= count) continue;
      *reinterpret_cast<Run<T, length>*>(to) = from[k];
      to += step;
    }
  }
};

// Adds term(task, 0), term(task, 1) ... term(task, terms - 1) up for each task, and gives result(task, sum) to one
// thread. All threads of the block must call it.
template <class Real, class Term, class Result>
__device__ __forceinline__ void team_sums(int tasks, int terms, Term term, Result result) {
  int log_team = 0;  // 2^log_team neighboring threads share a task
  while (log_team < 5 && 1 << log_team < terms && tasks << (log_team + 1) <= static_cast<int>(blockDim.x)) ++log_team;
  const int team = 1 << log_team, member = static_cast<int>(threadIdx.x) & (team - 1);
  const int teams = static_cast<int>(blockDim.x) >> log_team;
  FASTSCORE_KEEP_ROLLED
  for (int base = 0; base < tasks; base += teams) {
    const int task = base + (static_cast<int>(threadIdx.x) >> log_team);
    Real sum = 0;
    if (task < tasks) {
      FASTSCORE_KEEP_ROLLED
      for (int j = member; j < terms; j += team) sum += term(task, j);
    }
    FASTSCORE_KEEP_ROLLED
    for (int away = team >> 1; away > 0; away >>= 1) sum += __shfl_xor_sync(full_warp, sum, away);
    if (task < tasks && member == 0) result(task, sum);
  }
}

// Channels of a thread whose sums go through shared memory together.
template <class TileT>
inline constexpr int sum_round = TileT::columns < 4 ? TileT::columns : 4;

// Shared memory of a block, in elements of the op dtype: `row_count` numbers of each channel, side by side; sums of
// each channel; numbers of each group; and room for the sums of the threads.
template <class RealT, int row_count>
struct Shared {
  using Real = RealT;
  struct Row {
    SharedPointer<Real> first;
    __device__ __forceinline__ decltype(auto) operator[](int c) const { return first[c * row_count]; }
  };
  const Plan& plan;
  SharedPointer<Real> rows, sums, totals, room;

  __device__ __forceinline__ Shared(SharedPointer<Real> memory, const Plan& plan, int sum_count)
      : plan(plan),
        rows(memory),
        sums(rows + row_count * plan.tile_channels),
        totals(sums + sum_count * plan.tile_channels),
        room(totals + 3 * plan.column_groups) {}
  __device__ __forceinline__ Row row(int k) const { return {rows + k}; }
  __device__ __forceinline__ auto sum(int k) const { return sums + k * plan.tile_channels; }
  __device__ __forceinline__ auto total(int k) const { return totals + k * plan.column_groups; }
};

template <class TileT>
std::size_t shared_bytes(const Plan& plan, int rows, int sums) {
  const int elements = (rows + sums) * plan.tile_channels + 3 * plan.column_groups +
                       sums * sum_round<TileT> * plan.slots * (plan.peers + 1);
  return elements * sizeof(typename TileT::Real);
}

// shared.sum(k)[c]: the sum of what term(i, s) puts into s[k] over the threads that hold channel c = channel + i. All
// threads of the block must call it.
template <int n, class TileT, class SharedT, class Term>
__device__ __forceinline__ void channel_sums(const TileT& tile, const SharedT& shared, Term term) {
  using Real = typename SharedT::Real;
  constexpr int round = sum_round<TileT>;
  const Divisor& slots = shared.plan.slots;
  const int peers = shared.plan.peers, pitch = peers + 1;
  FASTSCORE_UNROLL
  for (int begin = 0; begin < TileT::columns; begin += round) {
    __syncthreads();
    if (tile.slot < slots && tile.position < peers) {
      FASTSCORE_UNROLL
      for (int i = 0; i < round; ++i) {
        Real s[n] = {};
        term(begin + i, s);
        FASTSCORE_UNROLL
        for (int k = 0; k < n; ++k) shared.room[((k * round + i) * slots + tile.slot) * pitch + tile.position] = s[k];
      }
    }
    __syncthreads();
    team_sums<Real>(
        n * round * slots, peers, [&](int task, int j) { return Real(shared.room[task * pitch + j]); },
        [&](int task, Real sum) {
          const int which = task / slots, c = (task - which * slots) * TileT::columns + begin + which % round;
          if (c < tile.channels) shared.sum(which / round)[c] = sum;
        });
  }
  __syncthreads();
}

// result(k, g, sum): the sum of weight(c) * shared.sum(k)[c] over the channels c of the tile that are of its group g.
template <int n, class TileT, class SharedT, class Weight, class Result>
  requires(n <= 2)
__device__ __forceinline__ void group_sums(const TileT& tile, const SharedT& shared, Weight weight, Result result) {
  using Real = typename SharedT::Real;
  const int groups = tile.groups, d = tile.group_channels;
  team_sums<Real>(
      n * groups, d,
      [&](int task, int j) {
        const int k = n == 1 || task < groups ? 0 : 1, c = (task - k * groups) * d + j;
        return weight(c) * shared.sum(k)[c];
      },
      [&](int task, Real sum) {
        const int k = n == 1 || task < groups ? 0 : 1;
        result(k, task - k * groups, sum);
      });
}

// ------------------------------------------------------------------------------------------------ numbers

template <class Real>
__device__ __forceinline__ Real number(const Parameter& p, std::int64_t n, int c, Real otherwise) {
  if (p.data == nullptr) return otherwise;
  const std::int64_t at = n * p.stride + c;
  if constexpr (sizeof(Real) == 8) {
    return static_cast<const double*>(p.data)[at];
  } else {
    if (p.dtype == Dtype::bf16) return widen(static_cast<const __nv_bfloat16*>(p.data)[at]);
    if (p.dtype == Dtype::f16) return widen(static_cast<const __half*>(p.data)[at]);
    return static_cast<const float*>(p.data)[at];
  }
}

// a + b, and what rounding took from it (Knuth, The Art of Computer Programming 2, 4.2.2, theorem B).
template <class Real>
__device__ __forceinline__ Real exact_sum(Real a, Real b, Real& lost) {
  const Real sum = a + b, of_b = sum - a;
  lost = (a - (sum - of_b)) + (b - of_b);
  return sum;
}

__device__ __forceinline__ float square_root(float v) {
  return sqrtf(v);
}
__device__ __forceinline__ double square_root(double v) {
  return ::sqrt(v);
}

// 1 / (1 + exp(-v)). The reciprocal is good to one unit in the last place, and zero where the sum is beyond 2^126;
// 16-bit results leave room for the fast exponential, too.
template <class T>
__device__ __forceinline__ accumulator_t<T> sigmoid(accumulator_t<T> v) {
  if constexpr (sizeof(T) == 8)
    return 1 / (1 + ::exp(-v));
  else
    return __fdividef(1.0f, 1 + (sizeof(T) == 2 ? __expf(-v) : expf(-v)));
}

template <class T>
__device__ __forceinline__ accumulator_t<T> silu(accumulator_t<T> v) {
  return v * sigmoid<T>(v);
}

// d silu(v) / dv
template <class T>
__device__ __forceinline__ accumulator_t<T> silu_slope(accumulator_t<T> v) {
  const auto s = sigmoid<T>(v);
  return s * multiply_add(v, 1 - s, decltype(s){1});
}

// ------------------------------------------------------------------------------------------------ launch

// What a kernel does: all, or a part: learn what is to be known of the groups, or apply it.
enum class Phase { all, know, apply };

// The work of a block. `apply` goes backward, because what was read last is still in the cache.
struct Turn {
  int sample, column, block, begin, end;  // the last two: its tiles

  __device__ __forceinline__ Turn(const Plan& plan, Phase phase) {
    const auto x = static_cast<int>(phase == Phase::apply ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    block = static_cast<int>(phase == Phase::apply ? gridDim.y - 1 - blockIdx.y : blockIdx.y);
    sample = x / plan.columns;
    column = x % plan.columns;
    begin = block * plan.repeat;
    end = min(begin + plan.repeat, plan.tiles);
  }
};

using Kernel = void (*)(Args, Plan, Phase);

inline cudaError_t launch_phases(Kernel kernel, const Args& args, const Plan& plan, std::size_t shared,
                                 cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.batch * plan.columns), static_cast<unsigned>(plan.blocks));
  if (plan.whole) return launch(kernel, grid, plan.threads, shared, stream, args, plan, Phase::all);
  if (const auto error = launch(kernel, grid, plan.threads, shared, stream, args, plan, Phase::know)) return error;
  return launch(kernel, grid, plan.threads, shared, stream, args, plan, Phase::apply);
}

// f(T{}, path) with the element type and the path, a std::integral_constant, of a call.
template <class F>
cudaError_t for_call(const Args& args, const Plan& plan, F f) {
  return for_dtype(args.dtype, [&](auto like) {
    if (!plan.vectors) return f(like, std::integral_constant<Path, Path::elements>{});
    if (args.channels_last) return f(like, std::integral_constant<Path, Path::channels_last>{});
    return f(like, std::integral_constant<Path, Path::contiguous>{});
  });
}

}  // namespace fastscore::cuda::group_norm

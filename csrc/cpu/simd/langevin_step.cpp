#include "cpu/simd/langevin_step.h"

#include "cpu/simd/tile.h"
#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// Sum of squares of n values(i, rest), which gives `rest` of them from the i-th on (zeros beyond). Four sums per lane
// keep each of them short; they are added in double.
template <class T, class Values>
[[gnu::always_inline]] inline double squared_norm(std::int64_t n, Values values) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes, chains = 4;
  Vec sums[chains] = {};
  std::int64_t i = 0;
  for (; i + chains * lanes <= n; i += chains * lanes)
    for (int k = 0; k < chains; ++k) {
      const Vec v = values(i + k * lanes, lanes);
      sums[k] = fma(v, v, sums[k]);
    }
  for (int k = 0; i < n; i += lanes, ++k) {
    const Vec v = values(i, n - i < lanes ? n - i : lanes);
    sums[k] = fma(v, v, sums[k]);
  }
  double total = 0;
  for (const Vec& chain : sums) total += sum(chain);
  return total;
}

template <class T>
[[gnu::always_inline]] inline typename Acc<T>::vec load_some(const T* from, std::int64_t n) {
  return n == Acc<T>::lanes ? load(from) : load_n(from, n);
}

// out = x + step g + width z
template <class T, class Z>
void move(T* out, const T* x, const T* h, const Z* z, typename Acc<T>::scalar p, typename Acc<T>::scalar q,
          typename Acc<T>::scalar step, typename Acc<T>::scalar width, std::int64_t n) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes;
  const Vec wp = splat(p), wq = splat(q), ws = splat(step), ww = splat(width);
  const auto moved = [&](Vec xi, Vec hi, Vec zi) { return fma(ww, zi, fma(ws, fma(wq, hi, wp * xi), xi)); };
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, moved(load(x + i), load(h + i), load(z + i)));
  if (const std::int64_t rest = n - i; rest > 0)
    store_n(out + i, moved(load_n(x + i, rest), load_n(h + i, rest), load_n(z + i, rest)), rest);
}

// Elements [first, first + n) of a sample in logical order: where they lie, or collected in `buffer`.
template <class T>
const T* in_logical_order(const LangevinStepArgs& args, const T* sample, std::int64_t first, std::int64_t n,
                          T* buffer) {
  if (args.channels == 1) return sample + first;
  std::int64_t channel = first / args.pixels, pixel = first % args.pixels;
  for (std::int64_t i = 0; i < n; ++channel, pixel = 0)
    for (; i < n && pixel < args.pixels; ++i, ++pixel) buffer[i] = sample[pixel * args.channels + channel];
  return buffer;
}

template <class T>
struct Sample {
  const T *x, *h, *noise;
  T* out;
  typename Acc<T>::scalar p, q;

  Sample(const LangevinStepArgs& args, std::int64_t b) {
    const auto operand = [b](const LangevinStepArgs::Operand& o) {
      return o.data == nullptr ? nullptr : static_cast<const T*>(o.data) + b * o.stride;
    };
    x = operand(args.x);
    h = operand(args.h);
    noise = operand(args.noise);
    out = static_cast<T*>(args.out) + b * args.out_stride;
    const auto* row = static_cast<const typename Acc<T>::scalar*>(args.coefficients) + b * args.coefficient_stride;
    p = row[0];
    q = row[1];
  }
};

template <class T>
void norms(const LangevinStepArgs& args, std::int64_t per_sample, double* sums, std::int64_t begin, std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  T x[step_tile], h[step_tile], noise[step_tile];
  const std::int64_t size = args.pixels * args.channels;
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t b = tile / per_sample, first = tile % per_sample * step_tile;
    const std::int64_t n = size - first < step_tile ? size - first : step_tile;
    const Sample<T> sample(args, b);
    const T* tile_x = in_logical_order(args, sample.x, first, n, x);
    const T* tile_h = in_logical_order(args, sample.h, first, n, h);
    const auto p = splat(sample.p), q = splat(sample.q);
    sums[2 * tile + 1] = squared_norm<T>(n, [&](std::int64_t i, std::int64_t rest) {
      return fma(q, load_some(tile_h + i, rest), p * load_some(tile_x + i, rest));
    });
    if (sample.noise != nullptr) {
      const T* z = in_logical_order(args, sample.noise, first, n, noise);
      sums[2 * tile] = squared_norm<T>(n, [&](std::int64_t i, std::int64_t rest) { return load_some(z + i, rest); });
      continue;
    }
    const PhiloxStream stream(args.rng[0], args.rng[1], args.samples[b]);
    if constexpr (sizeof(Real) == sizeof(float)) {
      sums[2 * tile] = stream.squared_norm(first, n);
    } else {
      Real z[step_tile];
      stream.fill_normals(first, n, z);
      sums[2 * tile] = squared_norm<T>(n, [&](std::int64_t i, std::int64_t rest) { return load_some(z + i, rest); });
    }
  }
}

template <class T>
void update(const LangevinStepArgs& args, StepTiles tiles, const double* weights, std::int64_t begin,
            std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  Real drawn[step_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const Tile tile(args, tiles, t);
    const std::int64_t b = tile.sample;
    const Sample<T> sample(args, b);
    const T *x = sample.x + tile.offset, *h = sample.h + tile.offset;
    T* out = sample.out + tile.offset;
    const Real step = static_cast<Real>(weights[2 * b]), width = static_cast<Real>(weights[2 * b + 1]);
    if (sample.noise != nullptr) {
      move(out, x, h, sample.noise + tile.offset, sample.p, sample.q, step, width, tile.n);
    } else {
      tile.draw(args, drawn);
      move(out, x, h, drawn, sample.p, sample.q, step, width, tile.n);
    }
  }
}

}  // namespace

void langevin_norms(const LangevinStepArgs& args, std::int64_t per_sample, double* sums, std::int64_t begin,
                    std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { norms<decltype(like)>(args, per_sample, sums, begin, end); });
}

void langevin_update(const LangevinStepArgs& args, StepTiles tiles, const double* weights, std::int64_t begin,
                     std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { update<decltype(like)>(args, tiles, weights, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

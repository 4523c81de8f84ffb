// Both layouts do the same: statistics of a group (or the sums that its derivative needs), then six numbers per
// channel, then one pass that writes. With x - center exact where it matters, v = slope * (x - center) + offset is the
// argument of SiLU; see `prepare` and `finish` for the numbers.
#include "cpu/simd/group_norm_silu.h"

#include "cpu/simd/silu.h"
#include "cpu/simd/tails.h"
#include "cpu/simd/vec.h"

#define FASTSCORE_MEMBER inline __attribute__((always_inline))

namespace fastscore::FASTSCORE_ISA {

namespace {

using std::int64_t;
using Args = GroupNormSiluCpuArgs;
using Kind = GroupNormSiluKind;

// Rows of the coefficients. forward: v; backward: grad_x = slope * g + toward_x * (x - center) + rest;
// jvp: v_t = along * (x_t - center_t) + toward_x * (x - center) + rest.
enum Row { center, slope, offset, toward_x, rest, along, center_t };

constexpr int64_t chunk = 8192;              // elements summed in one go: they fit the first-level cache
constexpr int64_t cascade = 16;              // terms added to one number before it is added to another one
constexpr int64_t prefetch_limit = 1 << 19;  // bytes that the second-level cache keeps until their turn comes

FASTSCORE_INLINE int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// ------------------------------------------------------------------------------------------ numbers per channel

template <class T>
struct View {
  using Real = typename Acc<T>::scalar;
  const Args& args;
  int64_t n;  // the sample

  int64_t width() const { return args.lane_channels; }
  int64_t group_channels() const { return args.channels / args.groups; }
  const T* x() const { return static_cast<const T*>(args.x.data) + n * args.x.stride; }
  const T* other() const { return static_cast<const T*>(args.other.data) + n * args.other.stride; }
  T* out() const { return static_cast<T*>(args.out) + n * args.channels * args.pixels; }
  Real* coefficient(Row row) const {
    return static_cast<Real*>(args.coefficients) + (n * group_norm_silu_coefficients + row) * width();
  }
  double* sum(int k) const { return args.sums + (n * 3 + k) * args.channels; }
  Real& mean(int64_t g) const { return static_cast<Real*>(args.mean)[n * args.groups + g]; }
  Real& rstd(int64_t g) const { return static_cast<Real*>(args.rstd)[n * args.groups + g]; }
  double number(Args::Parameter p, int64_t c, double otherwise) const {
    return p.data == nullptr ? otherwise : static_cast<double>(static_cast<const Real*>(p.data)[n * p.stride + c]);
  }
};

// center, slope and offset of the channels of group g. The center is rounded; what it lost goes into the offset.
template <class T>
void prepare(View<T> view, int64_t g, double mean, double rstd) {
  using Real = typename View<T>::Real;
  const auto& p = view.args.value;
  const int64_t d = view.group_channels();
  for (int64_t c = g * d; c < (g + 1) * d; ++c) {
    const double exact = mean - view.number(p.add, c, 0), gain = 1 + view.number(p.scale, c, 0);
    const Real rounded = static_cast<Real>(exact);
    const Real a = static_cast<Real>(rstd * view.number(p.weight, c, 1) * gain);
    const double b = view.number(p.bias, c, 0) * gain + view.number(p.shift, c, 0);
    view.coefficient(center)[c] = rounded;
    view.coefficient(slope)[c] = a;
    view.coefficient(offset)[c] = static_cast<Real>(b + a * (rounded - exact));
  }
}

// Statistics of a group from its mean and its sum of squared deviations, kept and made into coefficients.
template <class T>
void normalize(View<T> view, int64_t g, double mean, double squares) {
  using Real = typename View<T>::Real;
  const double count = static_cast<double>(view.group_channels() * view.args.pixels);
  const double rstd = 1 / __builtin_sqrt(squares / count + view.args.eps);
  view.mean(g) = static_cast<Real>(mean);
  view.rstd(g) = static_cast<Real>(rstd);
  prepare<T>(view, g, mean, rstd);
}

// backward: sums are [0] of g, [1] of g (x - center), [2] of x - center, with g = dL/dv.
// With A = weight (1 + scale): grad_z = rstd (A g - mean(A g) - xhat mean(A g xhat)).
template <class T>
void finish_backward(View<T> view, int64_t g) {
  using Real = typename View<T>::Real;
  const auto& p = view.args.value;
  const int64_t d = view.group_channels();
  const double mean = view.mean(g), rstd = view.rstd(g);
  const double pixels = static_cast<double>(view.args.pixels), count = static_cast<double>(d) * pixels;
  double first = 0, second = 0;
  for (int64_t c = g * d; c < (g + 1) * d; ++c) {
    const double lost = view.coefficient(center)[c] - (mean - view.number(p.add, c, 0));
    view.sum(1)[c] = rstd * (view.sum(1)[c] + lost * view.sum(0)[c]);
    view.sum(2)[c] = rstd * (view.sum(2)[c] + lost * pixels);
    const double a = view.number(p.weight, c, 1) * (1 + view.number(p.scale, c, 0));
    first += a * view.sum(0)[c];
    second += a * view.sum(1)[c];
  }
  first /= count;
  second /= count;
  for (int64_t c = g * d; c < (g + 1) * d; ++c) {
    const double lost = view.coefficient(center)[c] - (mean - view.number(p.add, c, 0));
    const double a = view.number(p.weight, c, 1) * (1 + view.number(p.scale, c, 0));
    view.sum(2)[c] = rstd * (a * view.sum(0)[c] - pixels * first - view.sum(2)[c] * second);
    view.coefficient(toward_x)[c] = static_cast<Real>(-rstd * rstd * second);
    view.coefficient(rest)[c] = static_cast<Real>(-rstd * (first + rstd * second * lost));
  }
}

// jvp: sums are [0] of x_t, [1] of x_t (x - center), [2] of x - center. With z_t = x_t + add_t,
// xhat_t = rstd (z_t - mean(z_t) - xhat mean(z_t xhat)) and v_t = A xhat_t + A_t xhat + (bias (1 + scale) + shift)_t.
template <class T>
void finish_jvp(View<T> view, int64_t g) {
  using Real = typename View<T>::Real;
  const auto &p = view.args.value, &t = view.args.tangent;
  const int64_t d = view.group_channels();
  const double mean = view.mean(g), rstd = view.rstd(g);
  const double pixels = static_cast<double>(view.args.pixels), count = static_cast<double>(d) * pixels;
  double first = 0, second = 0;
  for (int64_t c = g * d; c < (g + 1) * d; ++c) {
    const double lost = view.coefficient(center)[c] - (mean - view.number(p.add, c, 0));
    const double add_t = view.number(t.add, c, 0);
    first += view.sum(0)[c] + pixels * add_t;
    second += rstd * (view.sum(1)[c] + lost * view.sum(0)[c] + add_t * (view.sum(2)[c] + lost * pixels));
  }
  first /= count;
  second /= count;
  for (int64_t c = g * d; c < (g + 1) * d; ++c) {
    const double lost = view.coefficient(center)[c] - (mean - view.number(p.add, c, 0));
    const double weight = view.number(p.weight, c, 1), gain = 1 + view.number(p.scale, c, 0);
    const double scale_t = view.number(t.scale, c, 0), a = rstd * weight * gain;
    const double along_xhat = weight * scale_t + view.number(t.weight, c, 0) * gain - a * second;
    const double exact = first - view.number(t.add, c, 0);
    const Real rounded = static_cast<Real>(exact);
    const double constant = view.number(p.bias, c, 0) * scale_t + view.number(t.bias, c, 0) * gain +
                            view.number(t.shift, c, 0) + a * (rounded - exact);
    view.coefficient(center_t)[c] = rounded;
    view.coefficient(along)[c] = static_cast<Real>(a);
    view.coefficient(toward_x)[c] = static_cast<Real>(rstd * along_xhat);
    view.coefficient(rest)[c] = static_cast<Real>(constant + rstd * along_xhat * lost);
  }
}

// Whether |v| stays where exp(-v) is finite in channel c, if `squares` is the sum of (x - mean)^2 over elements that
// include those of the channel: then none of them lies further than its root from the mean. NaN says no.
template <class T>
bool in_range(View<T> view, int64_t c, double squares) {
  const double furthest = 1.001 * __builtin_sqrt(squares);
  const double v = furthest * __builtin_fabs(view.coefficient(slope)[c]) + __builtin_fabs(view.coefficient(offset)[c]);
  return v < ExpRange<typename Acc<T>::vec>::greatest;
}

// ------------------------------------------------------------------------------------------ elements

// Coefficients of the elements of a row: those of one channel, or one per element.
template <class T>
struct OneChannel {
  typename Acc<T>::vec value[group_norm_silu_coefficients];

  OneChannel(View<T> view, int64_t c) {
    for (int row = 0; row < group_norm_silu_coefficients; ++row) value[row] = splat(view.coefficient(Row(row))[c]);
  }
  template <class Part>
  FASTSCORE_MEMBER auto get(Row row, int64_t, Part) const {
    return value[row];
  }
};

template <class T>
struct ManyChannels {
  const typename Acc<T>::scalar* value;
  int64_t width;

  explicit ManyChannels(View<T> view) : value(view.coefficient(center)), width(view.width()) {}
  template <class Part>
  FASTSCORE_MEMBER auto get(Row row, int64_t i, Part part) const {
    return load(value + row * width + i, part);
  }
};

// Where sums over the elements of a row go: into one number per channel, or one per element.
template <class T>
struct OneSum {
  typename Acc<T>::vec value[3] = {};

  template <class V, class Part>
  FASTSCORE_MEMBER void add(int k, int64_t, V term, Part part) {
    value[k] += keep(term, part);
  }
};

template <class T>
struct ManySums {
  typename Acc<T>::scalar* value;
  int64_t width;

  template <class V, class Part>
  FASTSCORE_MEMBER void add(int k, int64_t i, V term, Part part) {
    auto* to = value + k * width + i;
    store(to, load(to, part) + term, part);
  }
};

template <class T, bool with_silu, bool ranged, class Coefficients>
FASTSCORE_INLINE void write_forward(T* y, const T* x, int64_t n, const Coefficients& c, int64_t ahead) {
  each_vector<T>(n, [&](int64_t i, auto part) {
    if (ahead != 0) __builtin_prefetch(x + i + ahead);
    auto v = fma(load(x + i, part) - c.get(center, i, part), c.get(slope, i, part), c.get(offset, i, part));
    if constexpr (with_silu) v = silu<ranged>(v);
    store(y + i, v, part);
  });
}

// g = dL/dv. What was computed for the sums is kept in grad_x until it is written, where that loses nothing.
template <class T, bool with_silu>
inline constexpr bool keeps_g = with_silu && sizeof(T) == sizeof(typename Acc<T>::scalar);

template <class T, bool with_silu, class V, class Coefficients, class Part>
FASTSCORE_INLINE V gradient_of_v(V grad_y, V offcenter, const Coefficients& c, int64_t i, Part part) {
  if constexpr (!with_silu) return grad_y;
  return grad_y * silu_slope(fma(offcenter, c.get(slope, i, part), c.get(offset, i, part)));
}

template <class T, bool with_silu, class Coefficients, class Sums>
FASTSCORE_INLINE void sum_backward(T* grad_x, const T* x, const T* grad_y, int64_t n, const Coefficients& c,
                                   Sums& sums) {
  each_vector<T>(n, [&](int64_t i, auto part) {
    const auto offcenter = load(x + i, part) - c.get(center, i, part);
    const auto g = gradient_of_v<T, with_silu>(load(grad_y + i, part), offcenter, c, i, part);
    if constexpr (keeps_g<T, with_silu>) store(grad_x + i, g, part);
    sums.add(0, i, g, part);
    sums.add(1, i, g * offcenter, part);
    sums.add(2, i, offcenter, part);
  });
}

template <class T, bool with_silu, class Coefficients>
FASTSCORE_INLINE void write_backward(T* grad_x, const T* x, const T* grad_y, int64_t n, const Coefficients& c) {
  each_vector<T>(n, [&](int64_t i, auto part) {
    const auto offcenter = load(x + i, part) - c.get(center, i, part);
    auto g = load((keeps_g<T, with_silu> ? grad_x : grad_y) + i, part);
    if constexpr (!keeps_g<T, with_silu>) g = gradient_of_v<T, with_silu>(g, offcenter, c, i, part);
    const auto z = fma(offcenter, c.get(toward_x, i, part), c.get(rest, i, part));
    store(grad_x + i, fma(g, c.get(slope, i, part), z), part);
  });
}

template <class T, class Coefficients, class Sums>
FASTSCORE_INLINE void sum_jvp(const T* x, const T* x_t, int64_t n, const Coefficients& c, Sums& sums) {
  each_vector<T>(n, [&](int64_t i, auto part) {
    const auto offcenter = load(x + i, part) - c.get(center, i, part), tangent = load(x_t + i, part);
    sums.add(0, i, tangent, part);
    sums.add(1, i, tangent * offcenter, part);
    sums.add(2, i, offcenter, part);
  });
}

template <class T, bool with_silu, class Coefficients>
FASTSCORE_INLINE void write_jvp(T* y_t, const T* x, const T* x_t, int64_t n, const Coefficients& c) {
  each_vector<T>(n, [&](int64_t i, auto part) {
    const auto offcenter = load(x + i, part) - c.get(center, i, part);
    const auto z = fma(offcenter, c.get(toward_x, i, part), c.get(rest, i, part));
    const auto v_t = fma(load(x_t + i, part) - c.get(center_t, i, part), c.get(along, i, part), z);
    store(y_t + i, gradient_of_v<T, with_silu>(v_t, offcenter, c, i, part), part);
  });
}

// The sums of a row, of either kind.
template <class T, bool with_silu, class Coefficients, class Sums>
FASTSCORE_INLINE void sum_row(View<T> view, int64_t at, int64_t n, const Coefficients& c, Sums& sums) {
  if (view.args.kind == Kind::backward)
    sum_backward<T, with_silu>(view.out() + at, view.x() + at, view.other() + at, n, c, sums);
  else
    sum_jvp<T>(view.x() + at, view.other() + at, n, c, sums);
}

template <class T, bool with_silu, class Coefficients>
FASTSCORE_INLINE void write_row(View<T> view, int64_t at, int64_t n, const Coefficients& c, bool ranged,
                                int64_t ahead) {
  if (view.args.kind == Kind::backward)
    write_backward<T, with_silu>(view.out() + at, view.x() + at, view.other() + at, n, c);
  else if (view.args.kind == Kind::jvp)
    write_jvp<T, with_silu>(view.out() + at, view.x() + at, view.other() + at, n, c);
  else if (ranged)
    write_forward<T, with_silu, true>(view.out() + at, view.x() + at, n, c, ahead);
  else
    write_forward<T, with_silu, false>(view.out() + at, view.x() + at, n, c, ahead);
}

// ------------------------------------------------------------------------------------------ statistics

// Mean and sum of squared deviations of `count` numbers.
struct Statistics {
  double count = 0, mean = 0, squares = 0;

  // Chan, Golub & LeVeque 1983, eq. 2.1.
  void merge(double n, double other_mean, double other_squares) {
    const double delta = other_mean - mean, total = count + n;
    mean += delta * n / total;
    squares += other_squares + delta * delta * count * n / total;
    count = total;
  }
  // From sums of (x - center) and (x - center)^2: `first` also mends the mean that the center is.
  void merge_moments(double n, double center, double first, double second) {
    merge(n, center + first / n, second - first * first / n);
  }
};

// Two passes over numbers that stay in the first-level cache: their mean, then deviations from it.
template <class T>
void merge_run(Statistics& statistics, const T* x, int64_t n, double add) {
  using V = typename Acc<T>::vec;
  using Real = typename Acc<T>::scalar;
  constexpr int lanes = Acc<T>::lanes, ways = 8;
  V total[ways] = {};
  int64_t i = 0;
  for (; i + ways * lanes <= n; i += ways * lanes)
    for (int k = 0; k < ways; ++k) total[k] += load(x + i + k * lanes);
  each_vector<T>(n - i, [&](int64_t j, auto part) { total[0] += load(x + i + j, part); });
  for (int k = 1; k < ways; ++k) total[0] += total[k];
  const Real mean = sum(total[0]) / static_cast<Real>(n);

  const V at = splat(mean);
  constexpr int half = ways / 2;
  const int64_t whole = n - n % (half * lanes);
  V first[half] = {}, second[half] = {};
  for (i = 0; i < whole;) {
    V f[half] = {}, s[half] = {};
    for (const int64_t end = smaller(i + cascade * half * lanes, whole); i < end; i += half * lanes)
      for (int k = 0; k < half; ++k) {
        const V d = load(x + i + k * lanes) - at;
        f[k] += d;
        s[k] = fma(d, d, s[k]);
      }
    for (int k = 0; k < half; ++k) {
      first[k] += f[k];
      second[k] += s[k];
    }
  }
  each_vector<T>(n - i, [&](int64_t j, auto part) {
    const V d = keep(load(x + i + j, part) - at, part);
    first[0] += d;
    second[0] = fma(d, d, second[0]);
  });
  for (int k = 1; k < half; ++k) {
    first[0] += first[k];
    second[0] += second[k];
  }
  statistics.merge_moments(static_cast<double>(n), mean + add, sum(first[0]), sum(second[0]));
}

// ------------------------------------------------------------------------------------------ contiguous

template <class T, bool with_silu>
void contiguous_group(View<T> view, int64_t g) {
  const Args& args = view.args;
  const int64_t d = view.group_channels(), pixels = args.pixels, size = d * pixels;
  const int64_t first = g * d, last = first + d;
  Statistics statistics;
  int64_t ahead = 0;
  if (args.kind == Kind::forward) {
    const bool flat = args.value.add.data == nullptr;  // without `add` the rows of a group need not be told apart
    const int64_t row = flat ? size : pixels;
    for (int64_t at = 0; at < size; at += row) {
      const double add = flat ? 0 : view.number(args.value.add, first + at / row, 0);
      for (int64_t i = 0; i < row; i += chunk)
        merge_run(statistics, view.x() + first * pixels + at + i, smaller(chunk, row - i), add);
    }
    normalize<T>(view, g, statistics.mean, statistics.squares);
    // While this group is computed, the next one, which lies behind it, is fetched.
    if (size * static_cast<int64_t>(sizeof(T)) <= prefetch_limit) ahead = size;
  } else {
    prepare<T>(view, g, view.mean(g), view.rstd(g));
    for (int64_t c = first; c < last; ++c) {
      const OneChannel<T> coefficients(view, c);
      double total[3] = {};
      constexpr int64_t run = 2 * cascade * Acc<T>::lanes;
      for (int64_t i = 0; i < pixels;) {
        OneSum<T> sums;
        for (const int64_t end = smaller(i + chunk, pixels); i < end; i += run) {
          OneSum<T> part;
          sum_row<T, with_silu>(view, c * pixels + i, smaller(run, end - i), coefficients, part);
          for (int k = 0; k < 3; ++k) sums.value[k] += part.value[k];
        }
        for (int k = 0; k < 3; ++k) total[k] += sum(sums.value[k]);
      }
      for (int k = 0; k < 3; ++k) view.sum(k)[c] = total[k];
    }
    args.kind == Kind::backward ? finish_backward<T>(view, g) : finish_jvp<T>(view, g);
  }
  for (int64_t c = first; c < last; ++c) {
    const bool ranged = args.kind == Kind::forward && in_range<T>(view, c, statistics.squares);
    write_row<T, with_silu>(view, c * pixels, pixels, OneChannel<T>(view, c), ranged, ahead);
  }
}

template <class T, bool with_silu>
void contiguous(const Args& args, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) contiguous_group<T, with_silu>(View<T>{args, t / args.groups}, t % args.groups);
}

// ------------------------------------------------------------------------------------------ channels last

// Two passes over a block, `tile` vectors of channels at a time: per channel the mean, then deviations from it.
template <class T, int tile, class Part>
FASTSCORE_INLINE void block_moments(const T* x, int64_t rows, int64_t width, typename Acc<T>::scalar* out, Part part) {
  using V = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes;
  V mean[tile] = {}, first[tile] = {}, second[tile] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int k = 0; k < tile; ++k) mean[k] += load(x + r * width + k * lanes, part);
  const V share = splat(1 / static_cast<typename Acc<T>::scalar>(rows));
  for (int k = 0; k < tile; ++k) mean[k] *= share;
  for (int64_t r = 0; r < rows;) {
    V f[tile] = {}, s[tile] = {};
    for (const int64_t end = smaller(r + cascade, rows); r < end; ++r)
      for (int k = 0; k < tile; ++k) {
        const V d = load(x + r * width + k * lanes, part) - mean[k];
        f[k] += d;
        s[k] = fma(d, d, s[k]);
      }
    for (int k = 0; k < tile; ++k) {
      first[k] += f[k];
      second[k] += s[k];
    }
  }
  for (int k = 0; k < tile; ++k) {
    store(out + k * lanes, mean[k], part);
    store(out + width + k * lanes, first[k], part);
    store(out + 2 * width + k * lanes, second[k], part);
  }
}

template <class T>
struct Block {
  int64_t rows, at;  // `at`: its first element in the sample
  typename Acc<T>::scalar* partial;

  Block(View<T> view, int64_t b) {
    const Args& args = view.args;
    rows = smaller(args.rows, args.pixels / args.fold - b * args.rows);
    at = b * args.rows * view.width();
    partial = static_cast<typename Acc<T>::scalar*>(args.partial) + (view.n * args.blocks + b) * 3 * view.width();
  }
};

template <class T, bool with_silu>
void channels_last_sum(const Args& args, int64_t begin, int64_t end) {
  constexpr int lanes = Acc<T>::lanes, tile = 4;
  for (int64_t t = begin; t < end; ++t) {
    const View<T> view{args, t / args.blocks};
    const Block<T> block(view, t % args.blocks);
    const int64_t width = view.width();
    if (args.kind == Kind::forward) {
      const T* x = view.x() + block.at;
      int64_t c = 0;
      for (; c + tile * lanes <= width; c += tile * lanes)
        block_moments<T, tile>(x + c, block.rows, width, block.partial + c, Whole{});
      each_vector<T>(width - c, [&](int64_t i, auto part) {
        block_moments<T, 1>(x + c + i, block.rows, width, block.partial + c + i, part);
      });
    } else {
      for (int64_t i = 0; i < 3 * width; ++i) block.partial[i] = 0;
      const ManyChannels<T> coefficients(view);
      ManySums<T> sums{block.partial, width};
      for (int64_t r = 0; r < block.rows; ++r)
        sum_row<T, with_silu>(view, block.at + r * width, width, coefficients, sums);
    }
  }
}

template <class T>
void channels_last_prepare(const Args& args, int64_t begin, int64_t end) {
  if (args.kind == Kind::forward) return;
  for (int64_t n = begin; n < end; ++n) {
    const View<T> view{args, n};
    for (int64_t g = 0; g < args.groups; ++g) prepare<T>(view, g, view.mean(g), view.rstd(g));
    for (int row = center; row <= offset; ++row)
      for (int64_t i = args.channels; i < view.width(); ++i)
        view.coefficient(Row(row))[i] = view.coefficient(Row(row))[i - args.channels];
  }
}

// Adds the blocks of a sample up in their order: to[c] += term(block, c, i) with element i of a row in channel c.
template <class T, class Term>
FASTSCORE_INLINE void sum_blocks(View<T> view, double* to, Term term) {
  const int64_t channels = view.args.channels;
  for (int64_t c = 0; c < channels; ++c) to[c] = 0;
  for (int64_t b = 0; b < view.args.blocks; ++b) {
    const Block<T> block(view, b);
    for (int64_t i = 0; i < view.width(); i += channels)
      for (int64_t c = 0; c < channels; ++c) to[c] += term(block, c, i + c);
  }
}

template <class T>
void channels_last_finish(const Args& args, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const View<T> view{args, n};
    const int64_t d = view.group_channels(), width = view.width();
    if (args.kind == Kind::forward) {
      // Sums about the centers of the blocks, moved to one center of the group, then to its mean: nothing cancels.
      double *total = view.sum(0), *squares = view.sum(1), *mean = view.sum(2);
      for (int64_t c = 0; c < args.channels; ++c) {
        const int64_t pivot = c / d * d;
        mean[c] = Block<T>(view, 0).partial[pivot] + view.number(args.value.add, pivot, 0) -
                  view.number(args.value.add, c, 0);
      }
      sum_blocks<T>(view, total, [&](const Block<T>& block, int64_t c, int64_t i) {
        return static_cast<double>(block.rows) * (block.partial[i] - mean[c]) + block.partial[width + i];
      });
      const double count = static_cast<double>(args.pixels * d);
      for (int64_t g = 0; g < args.groups; ++g) {
        double sum = 0;
        for (int64_t c = g * d; c < (g + 1) * d; ++c) sum += total[c];
        for (int64_t c = g * d; c < (g + 1) * d; ++c) mean[c] += sum / count;
      }
      sum_blocks<T>(view, squares, [&](const Block<T>& block, int64_t c, int64_t i) {
        const double off = block.partial[i] - mean[c];
        return block.partial[2 * width + i] +
               off * (2 * block.partial[width + i] + static_cast<double>(block.rows) * off);
      });
      for (int64_t g = 0; g < args.groups; ++g) {
        double sum = 0;
        for (int64_t c = g * d; c < (g + 1) * d; ++c) sum += squares[c];
        normalize<T>(view, g, mean[g * d] + view.number(args.value.add, g * d, 0), sum);
      }
      bool ranged = true;
      for (int64_t c = 0; c < args.channels; ++c) ranged &= in_range<T>(view, c, squares[c]);
      total[0] = ranged;  // for channels_last_write
    } else {
      for (int k = 0; k < 3; ++k)
        sum_blocks<T>(view, view.sum(k), [&](const Block<T>& block, int64_t, int64_t i) {
          return static_cast<double>(block.partial[k * width + i]);
        });
      for (int64_t g = 0; g < args.groups; ++g)
        args.kind == Kind::backward ? finish_backward<T>(view, g) : finish_jvp<T>(view, g);
    }
    for (int row = center; row < group_norm_silu_coefficients; ++row)
      for (int64_t i = args.channels; i < width; ++i)
        view.coefficient(Row(row))[i] = view.coefficient(Row(row))[i - args.channels];
  }
}

template <class T, bool with_silu>
void channels_last_write(const Args& args, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const View<T> view{args, t / args.blocks};
    const Block<T> block(view, t % args.blocks);
    const bool ranged = args.kind == Kind::forward && view.sum(0)[0] != 0;
    const ManyChannels<T> coefficients(view);
    const int64_t sample = args.channels * args.pixels;
    const bool fits = sample * static_cast<int64_t>(sizeof(T)) <= prefetch_limit && view.n + 1 < args.batch;
    const int64_t ahead = fits ? sample : 0;
    for (int64_t r = 0; r < block.rows; ++r)
      write_row<T, with_silu>(view, block.at + r * view.width(), view.width(), coefficients, ranged, ahead);
  }
}

}  // namespace

void group_norm_silu_contiguous(const Args& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    args.silu ? contiguous<T, true>(args, begin, end) : contiguous<T, false>(args, begin, end);
  });
}
void group_norm_silu_channels_last_prepare(const Args& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) { channels_last_prepare<decltype(like)>(args, begin, end); });
}
void group_norm_silu_channels_last_sum(const Args& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    args.silu ? channels_last_sum<T, true>(args, begin, end) : channels_last_sum<T, false>(args, begin, end);
  });
}
void group_norm_silu_channels_last_finish(const Args& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) { channels_last_finish<decltype(like)>(args, begin, end); });
}
void group_norm_silu_channels_last_write(const Args& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) {
    using T = decltype(like);
    args.silu ? channels_last_write<T, true>(args, begin, end) : channels_last_write<T, false>(args, begin, end);
  });
}

}  // namespace fastscore::FASTSCORE_ISA

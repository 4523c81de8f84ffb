// Both layouts do the same: statistics of a group (or the sums that its derivative needs), then six numbers per
// channel, then one pass that writes. With x - center exact where it matters, v = slope * (x - center) + offset is the
// argument of SiLU; see `prepare` and `finish` for the numbers.
#include "cpu/simd/group_norm_silu.h"

#include "cpu/simd/silu.h"
#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;
using Args = GroupNormSiluArgs;
using Kind = GroupNormSiluKind;

// Rows of the coefficients. forward: v; backward: grad_x = slope * g + toward_x * (x - center) + rest;
// jvp: v_t = along * x_t + toward_x * (x - center) + rest.
enum Row { center, slope, offset, toward_x, rest, along };

constexpr int64_t chunk = 8192;              // elements summed in one go: they fit the first-level cache
constexpr int64_t prefetch_limit = 1 << 18;  // bytes of a group that the cache keeps until its turn comes

// ------------------------------------------------------------------------------------------ whole vectors and tails

struct Whole {};
struct First {
  int64_t n;
};

template <class T>
FASTSCORE_INLINE auto load(const T* from, Whole) {
  return load(from);
}
template <class T>
FASTSCORE_INLINE auto load(const T* from, First tail) {
  return load_n(from, tail.n);
}
template <class T, class V>
FASTSCORE_INLINE void store(T* to, V value, Whole) {
  store(to, value);
}
template <class T, class V>
FASTSCORE_INLINE void store(T* to, V value, First tail) {
  store_n(to, value, tail.n);
}
// Zero in the lanes that are not there.
template <class V>
FASTSCORE_INLINE V keep(V value, Whole) {
  return value;
}
FASTSCORE_INLINE vf32 keep(vf32 value, First tail) { return first_lanes32(tail.n) ? value : splat(0.0f); }
FASTSCORE_INLINE vf64 keep(vf64 value, First tail) { return first_lanes64(tail.n) ? value : splat(0.0); }

// f(i, Whole or First) for the vectors of n elements.
template <class T, class F>
FASTSCORE_INLINE void each_vector(int64_t n, F&& f) {
  constexpr int lanes = Acc<T>::lanes;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) f(i, Whole{});
  if (i < n) f(i, First{n - i});
}

FASTSCORE_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
    view.coefficient(toward_x)[c] = static_cast<Real>(-rstd * rstd * second);
    view.coefficient(rest)[c] = static_cast<Real>(-rstd * (first + rstd * second * lost));
    // From here on slope carries the exact rstd * A again: the one that v was computed with is not needed any more.
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
    const double constant = view.number(p.bias, c, 0) * scale_t + view.number(t.bias, c, 0) * gain +
                            view.number(t.shift, c, 0) + a * (view.number(t.add, c, 0) - first);
    view.coefficient(along)[c] = static_cast<Real>(a);
    view.coefficient(toward_x)[c] = static_cast<Real>(rstd * along_xhat);
    view.coefficient(rest)[c] = static_cast<Real>(constant + rstd * along_xhat * lost);
  }
}

// Whether |v| stays where exp(-v) is finite: no element of a group lies further than sqrt(count) standard deviations
// from its mean. NaN says no.
template <class T>
bool in_range(View<T> view, int64_t first, int64_t last) {
  const double root = 1.001 * __builtin_sqrt(static_cast<double>(view.group_channels() * view.args.pixels));
  bool all = true;
  for (int64_t c = first; c < last; ++c) {
    const double furthest = root / view.rstd(c / view.group_channels());
    const double v = furthest * __builtin_fabs(view.coefficient(slope)[c]) + __builtin_fabs(view.coefficient(offset)[c]);
    all &= v < SiluRange<typename Acc<T>::vec>::greatest;
  }
  return all;
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
  FASTSCORE_INLINE auto get(Row row, int64_t, Part) const {
    return value[row];
  }
};

template <class T>
struct ManyChannels {
  const typename Acc<T>::scalar* value;
  int64_t width;

  explicit ManyChannels(View<T> view) : value(view.coefficient(center)), width(view.width()) {}
  template <class Part>
  FASTSCORE_INLINE auto get(Row row, int64_t i, Part part) const {
    return load(value + row * width + i, part);
  }
};

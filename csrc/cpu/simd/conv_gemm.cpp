// A product of matrices whose left one is not laid out: each row is the channels of one pixel after another, as the
// kernel passes over them, found by pointers. What stands in front of the convolution is computed once for the pixels
// that a block reads.
#include "cpu/simd/conv_gemm.h"

#include "cpu/simd/panel.h"
#include "cpu/simd/silu.h"
#include "cpu/simd/tails.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t depth = 128;       // products that are summed up at a time: a sum of sums errs less
constexpr int64_t few_channels = 8;  // below, the channels of all taps are put side by side first
constexpr int64_t few_outputs = smaller(panel / 2, 8);  // up to these, vectors hold channels

constexpr int64_t larger(int64_t a, int64_t b) {
  return a < b ? b : a;
}
constexpr int64_t clamp_to(int64_t n, int64_t low, int64_t high) {
  return smaller(larger(n, low), high);
}

// The left matrix: row r of tap t begins at rows[t * taps_stride + r]; of each tap, n elements from `first` on.
struct Left {
  const float* const* rows;
  int64_t taps_stride, taps, first, n;
};

// Where products go: to `sums`, or at the last, where whole vectors are written, to out.
struct Right {
  float* sums;
  bool add;  // to what is there
  float* out;
  int64_t out_stride;
  const float* bias;
  const float* const* shifts;  // of each row; of those, columns from `column` on
  const float* residual;
  int64_t residual_stride, column;
  float scale;
};

// Adds what is at from(row, vector), if it is there.
template <int rows, int vectors, class F>
FASTSCORE_INLINE void add(vf32 (&sum)[rows][vectors], bool there, F&& from) {
  if (!there) return;
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = sum[r][v] + load(from(r, v));
}

// a b, where b (taps * n, panel) is packed; of panels b_stride apart as many as have `vectors` vectors.
template <int rows, int vectors>
void multiply(const Left& a, const float* b, int64_t b_stride, const Right& to) {
  vf32 sum[rows][vectors];
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = splat(0.0f);
  for (int64_t t = 0; t < a.taps; ++t) {
    const float* row[rows];
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) row[r] = a.rows[t * a.taps_stride + r] + a.first;
    for (int64_t i = 0; i < a.n; ++i, b += panel) {
      vf32 weight[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) weight[v] = load(b + v / 2 * b_stride + v % 2 * lanes);
#pragma GCC unroll 24
      for (int r = 0; r < rows; ++r) {
        const vf32 value = splat(row[r][i]);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[r][v] = fma(value, weight[v], sum[r][v]);
      }
    }
  }
  add<rows, vectors>(sum, to.add, [&](int r, int v) { return to.sums + (r * vectors + v) * lanes; });
  if (to.out == nullptr) {
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) store(to.sums + r * vectors * lanes + v * lanes, sum[r][v]);
    return;
  }
  add<rows, vectors>(sum, to.bias != nullptr, [&](int, int v) { return to.bias + v * lanes; });
  add<rows, vectors>(sum, to.shifts != nullptr, [&](int r, int v) { return to.shifts[r] + to.column + v * lanes; });
  add<rows, vectors>(sum, to.residual != nullptr,
                     [&](int r, int v) { return to.residual + r * to.residual_stride + v * lanes; });
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) store(to.out + r * to.out_stride + v * lanes, sum[r][v] * splat(to.scale));
}

using Multiply = void (*)(const Left&, const float*, int64_t, const Right&);
constexpr Multiply multiply_rows[] = {
    nullptr,        multiply<1, 2>, multiply<2, 2>, multiply<3, 2>,  multiply<4, 2>,  multiply<5, 2>,  multiply<6, 2>,
#if defined(__AVX512F__)
    multiply<7, 2>, multiply<8, 2>, multiply<9, 2>, multiply<10, 2>, multiply<11, 2>, multiply<12, 2>,
#endif
};
// For a block of so few rows that one panel would leave the adders waiting for each other's sums.
constexpr int few_rows = 3;
constexpr int64_t few_panels[] = {0, 4, 2, 2};
constexpr Multiply multiply_few[] = {nullptr, multiply<1, 8>, multiply<2, 4>, multiply<3, 4>};

// A convolution of few outputs would leave most of a panel empty: there, vectors hold channels. Sums of `outputs` rows
// of weights (taps * n, each) with `rows` rows, to `to` (rows, panel).
template <int rows, int outputs>
void dot(const Left& a, const float* weights, float* to) {
  vf32 sums[rows][outputs];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int k = 0; k < outputs; ++k) sums[r][k] = splat(0.0f);
  const int64_t length = a.taps * a.n;
  for (int64_t t = 0; t < a.taps; ++t, weights += a.n) {
    const float* row[rows];
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) row[r] = a.rows[t * a.taps_stride + r];
    each_vector<float>(a.n, [&](int64_t i, auto part) __attribute__((always_inline)) {
      vf32 weight[outputs];
#pragma GCC unroll 4
      for (int k = 0; k < outputs; ++k) weight[k] = load(weights + k * length + i, part);
#pragma GCC unroll 12
      for (int r = 0; r < rows; ++r) {
        const vf32 value = load(row[r] + i, part);
#pragma GCC unroll 4
        for (int k = 0; k < outputs; ++k) sums[r][k] = fma(value, weight[k], sums[r][k]);
      }
    });
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int k = 0; k < outputs; ++k) to[r * panel + k] = sum(sums[r][k]);
}

using Dot = void (*)(const Left&, const float*, float*);
constexpr int dot_rows = 4, dot_outputs = 3;  // whose sums fit into the registers, with a column of weights
constexpr Dot dots[dot_rows + 1][dot_outputs + 1] = {
    {},
    {nullptr, dot<1, 1>, dot<1, 2>, dot<1, 3>},
    {nullptr, dot<2, 1>, dot<2, 2>, dot<2, 3>},
    {nullptr, dot<3, 1>, dot<3, 2>, dot<3, 3>},
    {nullptr, dot<4, 1>, dot<4, 2>, dot<4, 3>},
};

struct Range {
  int64_t begin, end;
};

class Convolution {
 public:
  Convolution(const ConvGemmArgs& args, const ConvGemmPlan& plan)
      : args_(args),
        plan_(plan),
        x_(static_cast<const float*>(args.x)),
        residual_(static_cast<const float*>(args.residual)),
        out_(static_cast<float*>(args.out)),
        taps_(args.kernel * args.kernel),
        pixels_(args.batch * args.out_height * args.out_width),
        height_(args.upsample ? 2 * args.height : args.height),
        width_(args.upsample ? 2 * args.width : args.width),
        pointwise_(args.kernel == 1 && args.stride == 1 && args.padding == 0 && !args.upsample &&
                   args.out_height == args.height && args.out_width == args.width),
        in_front_(args.gain != nullptr || args.silu),
        gathers_(taps_ > 1 && args.channels < few_channels),
        dots_(args.outputs <= few_outputs),
        source_stride_(in_front_ ? odd_lines(args.channels) : args.x_stride),
        gathered_stride_(odd_lines(taps_ * args.channels)) {}

  int64_t scratch() {
    const Places places = places_of(nullptr);
    return places.end - static_cast<char*>(nullptr);
  }

  void run(char* memory, int64_t begin, int64_t end) {
    places_ = places_of(memory);
    for (int64_t i = 0; i < args_.channels; ++i) places_.zeros[i] = 0;
    if (dots_)
      for (int64_t k = 0; k < args_.outputs; ++k)
        for (int64_t i = 0; i < taps_ * args_.channels; ++i)
          places_.columns[k * taps_ * args_.channels + i] = args_.weights[i * panel + k];
    const int64_t panels = (args_.outputs + panel - 1) / panel;
    const int64_t share = (panels + plan_.shares - 1) / plan_.shares;
    int64_t prepared = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / plan_.shares, from = item % plan_.shares * share;
      if (block != prepared) prepare(block);
      prepared = block;
      if (dots_) {
        multiply_outputs();
        continue;
      }
      const int64_t to = smaller(from + share, panels);
      for (int64_t p = from; p < to;) p += multiply_panels(p, to - p);
    }
  }

 private:
  struct Places {
    float *zeros, *source, *gathered, *products, *columns;
    const float **rows, **shifts;
    char* end;
  };

  Places places_of(char* memory) const {
    const auto take = [&]<class T>(T*& place, int64_t count) {
      place = reinterpret_cast<T*>(memory);
      memory += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    };
    int64_t longest = 0;
    if (in_front_ && pointwise_) longest = plan_.pixels;
    if (in_front_ && !pointwise_)
      for (int64_t block = 0; block < plan_.blocks; ++block) {
        const Range range = pixels_read(block * plan_.pixels, smaller((block + 1) * plan_.pixels, pixels_));
        longest = larger(longest, range.end - range.begin);
      }
    Places places;
    take(places.zeros, args_.channels);
    take(places.source, longest * source_stride_);
    take(places.gathered, gathers_ ? plan_.pixels * gathered_stride_ : 0);
    take(places.products, larger(plan_.pixels, few_rows * 2) * panel);
    take(places.columns, dots_ ? args_.outputs * taps_ * args_.channels : 0);
    take(places.rows, plan_.pixels * taps_);
    take(places.shifts, plan_.pixels);
    places.end = memory;
    return places;
  }

  // Pixels of x that pixels [begin, end) of out depend on, and some between them.
  Range pixels_read(int64_t begin, int64_t end) const {
    if (pointwise_) return {begin, end};
    const auto row_read = [&](int64_t pixel, int64_t tap) {
      const int64_t row = pixel / args_.out_width, sample = row / args_.out_height;
      const int64_t y = clamp_to(row % args_.out_height * args_.stride - args_.padding + tap, 0, height_ - 1);
      return sample * args_.height + (args_.upsample ? y / 2 : y);
    };
    return {row_read(begin, 0) * args_.width, (row_read(end - 1, args_.kernel - 1) + 1) * args_.width};
  }

  void prepare(int64_t block) {
    first_ = block * plan_.pixels;
    count_ = smaller(plan_.pixels, pixels_ - first_);
    source_ = x_;
    if (in_front_) {
      const Range range = pixels_read(first_, first_ + count_);
      transform(range);
      source_ = places_.source - range.begin * source_stride_;
    }
    find_rows();
    if (gathers_) (this->*gathers[args_.channels])();
  }

  void transform(Range pixels) const {
    float* to = places_.source;
    for (int64_t p = pixels.begin; p < pixels.end; ++p, to += source_stride_) {
      const float* from = x_ + p * args_.x_stride;
      const int64_t sample = p / (args_.height * args_.width);
      const float *gain = args_.gain + sample * args_.gain_stride,
                  *offset = args_.offset + sample * args_.offset_stride;
      if (args_.gain == nullptr)
        each_vector<float>(args_.channels,
                           [&](int64_t i, auto part) { store(to + i, silu<false>(load(from + i, part)), part); });
      else if (args_.silu)
        each_vector<float>(args_.channels, [&](int64_t i, auto part) {
          store(to + i, silu<false>(fma(load(from + i, part), load(gain + i, part), load(offset + i, part))), part);
        });
      else
        each_vector<float>(args_.channels, [&](int64_t i, auto part) {
          store(to + i, fma(load(from + i, part), load(gain + i, part), load(offset + i, part)), part);
        });
    }
  }

  // Where the channels of each pixel of the block begin, for each tap, and its row of shifts.
  void find_rows() const {
    for (int64_t r = 0; r < count_;) {  // pixels of one row of out at a time
      const int64_t x = (first_ + r) % args_.out_width, row = (first_ + r) / args_.out_width;
      const int64_t y = row % args_.out_height, sample = row / args_.out_height;
      const int64_t end = smaller(count_, r + args_.out_width - x);
      if (args_.shift != nullptr)
        for (int64_t i = r; i < end; ++i) places_.shifts[i] = args_.shift + sample * args_.shift_stride;
      for (int64_t i = 0; i < args_.kernel; ++i)
        for (int64_t j = 0; j < args_.kernel; ++j)
          find_row(sample, y * args_.stride - args_.padding + i, x * args_.stride - args_.padding + j,
                   places_.rows + (i * args_.kernel + j) * plan_.pixels + r, end - r);
      r = end;
    }
  }

  // Those of n pixels of row y of a sample, from x on in steps of the stride.
  void find_row(int64_t sample, int64_t y, int64_t x, const float** rows, int64_t n) const {
    const int half = args_.upsample ? 1 : 0, step = args_.stride;
    const float* line = source_ + (sample * args_.height + (y >> half)) * args_.width * source_stride_;
    const bool inside = y >= 0 && y < height_;
    const int64_t begin = inside ? clamp_to((step - 1 - x) / step, 0, n) : n;
    const int64_t end = inside ? clamp_to((width_ - x + step - 1) / step, begin, n) : n;
    for (int64_t r = 0; r < begin; ++r) rows[r] = places_.zeros;
    for (int64_t r = begin; r < end; ++r) rows[r] = line + ((x + r * step) >> half) * source_stride_;
    for (int64_t r = end; r < n; ++r) rows[r] = places_.zeros;
  }

  // The channels of all taps side by side, `channels` of each.
  template <int channels>
  void gather() const {
    for (int64_t r = 0; r < count_; ++r) {
      float* to = places_.gathered + r * gathered_stride_;
      for (int64_t tap = 0; tap < taps_; ++tap, to += channels)
        __builtin_memcpy(to, places_.rows[tap * plan_.pixels + r], sizeof(float) * channels);
      places_.rows[r] = places_.gathered + r * gathered_stride_;
    }
  }
  static constexpr void (Convolution::* gathers[])() const = {
      nullptr,
      &Convolution::gather<1>,
      &Convolution::gather<2>,
      &Convolution::gather<3>,
      &Convolution::gather<4>,
      &Convolution::gather<5>,
      &Convolution::gather<6>,
      &Convolution::gather<7>,
  };

  // All pixels of the block with panel p, or with some of `left` panels from there on: how many.
  int64_t multiply_panels(int64_t p, int64_t left) const {
    const int64_t k = p * panel, b_stride = taps_ * args_.channels * panel;
    int64_t panels = 1;
    const Multiply* kernels = multiply_rows;
    if (count_ <= few_rows && few_panels[count_] <= left && k + few_panels[count_] * panel <= args_.outputs) {
      panels = few_panels[count_];
      kernels = multiply_few;
    }
    const int64_t n = smaller(panels * panel, args_.outputs - k);
    const bool whole = n == panels * panel;
    const int64_t taps = gathers_ ? 1 : taps_, channels = gathers_ ? taps_ * args_.channels : args_.channels;
    const int64_t taps_at_once = larger(depth / channels, 1), at_once = smaller(channels, depth);
    const float* b = args_.weights + p * b_stride;
    Left a{nullptr, plan_.pixels, 0, 0, 0};
    Right to{};
    to.out_stride = args_.out_stride;
    to.bias = args_.bias == nullptr ? nullptr : args_.bias + k;
    to.residual_stride = args_.residual_stride;
    to.column = k;
    to.scale = args_.scale;
    for (int64_t t = 0; t < taps; t += taps_at_once)
      for (int64_t c = 0; c < channels; c += at_once) {
        a.taps = smaller(taps_at_once, taps - t);
        a.first = c;
        a.n = smaller(at_once, channels - c);
        to.add = t > 0 || c > 0;
        const bool last = t + a.taps == taps && c + a.n == channels;
        for (int64_t r = 0; r < count_; r += most_rows) {
          const int64_t rows = smaller(most_rows, count_ - r);
          a.rows = places_.rows + t * plan_.pixels + r;
          to.sums = places_.products + r * panel;
          if (last && whole) {
            to.out = out_ + (first_ + r) * args_.out_stride + k;
            if (args_.shift != nullptr) to.shifts = places_.shifts + r;
            if (residual_ != nullptr) to.residual = residual_ + (first_ + r) * args_.residual_stride + k;
          }
          kernels[rows](a, b, b_stride, to);
          if (last && !whole) write(r, rows, k, n);
        }
        b += a.taps * a.n * panel;
      }
    return panels;
  }

  // All pixels of the block with all outputs, where those are few.
  void multiply_outputs() const {
    Left a{nullptr, plan_.pixels, gathers_ ? 1 : taps_, 0, gathers_ ? taps_ * args_.channels : args_.channels};
    for (int64_t r = 0; r < count_; r += dot_rows) {
      const int64_t rows = smaller(dot_rows, count_ - r);
      a.rows = places_.rows + r;
      for (int64_t k = 0; k < args_.outputs; k += dot_outputs)
        dots[rows][smaller(dot_outputs, args_.outputs - k)](a, places_.columns + k * a.taps * a.n,
                                                            places_.products + r * panel + k);
      write(r, rows, 0, args_.outputs);
    }
  }

  // Outputs [k, k + n) of pixels [r, r + rows) of the block, part of a panel.
  void write(int64_t r, int64_t rows, int64_t k, int64_t n) const {
    const vf32 scale = splat(args_.scale);
    for (; rows > 0; ++r, --rows) {
      const float *from = places_.products + r * panel,
                  *shift = args_.shift == nullptr ? nullptr : places_.shifts[r] + k;
      const float* residual = residual_ == nullptr ? nullptr : residual_ + (first_ + r) * args_.residual_stride + k;
      float* to = out_ + (first_ + r) * args_.out_stride + k;
      each_vector<float>(n, [&](int64_t i, auto part) __attribute__((always_inline)) {
        vf32 value = load(from + i, part);
        if (args_.bias != nullptr) value = value + load(args_.bias + k + i, part);
        if (shift != nullptr) value = value + load(shift + i, part);
        if (residual != nullptr) value = value + load(residual + i, part);
        store(to + i, value * scale, part);
      });
    }
  }

  const ConvGemmArgs& args_;
  const ConvGemmPlan plan_;
  const float *const x_, *const residual_;
  float* const out_;
  const int64_t taps_, pixels_;
  const int64_t height_, width_;  // of the image that the kernel passes over
  const bool pointwise_;          // pixel i of out depends on pixel i of x
  const bool in_front_, gathers_, dots_;
  const int64_t source_stride_, gathered_stride_;
  Places places_{};
  const float* source_ = nullptr;  // pixel 0, were it there
  int64_t first_ = 0, count_ = 0;  // pixels of the block at hand
};

}  // namespace

int64_t conv_gemm_panel() {
  return panel;
}

int64_t conv_gemm_rows() {
  return most_rows;
}

void conv_gemm_weights(const ConvGemmWeights& weights, int64_t begin, int64_t end) {
  const int64_t taps = weights.kernel * weights.kernel;
  float* to = weights.to + begin * taps * weights.channels * panel;
  for (int64_t p = begin; p < end; ++p)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < weights.channels; ++c)
        for (int64_t k = p * panel; k < (p + 1) * panel; ++k)
          *to++ =
              k >= weights.outputs
                  ? 0
                  : weights.from[k * weights.strides[0] + c * weights.strides[1] +
                                 tap / weights.kernel * weights.strides[2] + tap % weights.kernel * weights.strides[3]];
}

int64_t conv_gemm_scratch(const ConvGemmArgs& args, const ConvGemmPlan& plan) {
  return Convolution(args, plan).scratch();
}

void conv_gemm(const ConvGemmArgs& args, const ConvGemmPlan& plan, char* scratch, int64_t begin, int64_t end) {
  Convolution(args, plan).run(scratch, begin, end);
}

}  // namespace fastscore::FASTSCORE_ISA

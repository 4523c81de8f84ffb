// A product of matrices whose left one is not laid out: each row is the channels of one pixel after another, as the
// kernel passes over them, found by pointers. What stands in front of the convolution is computed once for the pixels
// that a block reads.
#include "cpu/simd/conv_gemm.h"

#include "cpu/simd/silu.h"
#include "cpu/simd/tails.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;

constexpr int lanes = lanes32, panel = 2 * lanes;
#if defined(__AVX512F__)
constexpr int most_rows = 12;  // of a product that fits into the registers, with a row of weights
#else
constexpr int most_rows = 6;
#endif
constexpr int64_t depth = 128;       // products that are summed up at a time: a sum of sums errs less
constexpr int64_t few_channels = 8;  // below, the channels of all taps are put side by side first
constexpr int64_t line = 16;         // elements of a cache line

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t larger(int64_t a, int64_t b) {
  return a < b ? b : a;
}
constexpr int64_t clamp_to(int64_t n, int64_t low, int64_t high) {
  return smaller(larger(n, low), high);
}
constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}
// An odd number of cache lines: rows that lie a power of two apart would share a set of the cache.
constexpr int64_t odd_lines(int64_t n) {
  return (round_up(n, line) / line | 1) * line;
}

// The left matrix: row r of tap t begins at rows[t * taps_stride + r]; of each tap, n elements from `first` on.
struct Left {
  const float* const* rows;
  int64_t taps_stride, taps, first, n;
};

// c (rows, panel) = or += a b, of which b (taps * n, panel) is packed; the first `vectors` vectors of each panel.
// Of few rows every other product (every fourth) has a sum of its own, so that no sum waits for the one before.
template <int rows, int vectors>
void multiply(const Left& a, const float* b, float* c, bool add) {
  constexpr int ways = rows * vectors >= 6 ? 1 : rows * vectors >= 4 ? 2 : 4;
  vf32 sum[ways][rows][vectors];
#pragma GCC unroll 4
  for (int w = 0; w < ways; ++w)
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[w][r][v] = splat(0.0f);
  for (int64_t t = 0; t < a.taps; ++t) {
    const float* row[rows];
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) row[r] = a.rows[t * a.taps_stride + r] + a.first;
    int64_t i = 0;
    for (; i + ways <= a.n; i += ways, b += ways * panel)
#pragma GCC unroll 4
      for (int w = 0; w < ways; ++w) {
        vf32 weight[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) weight[v] = load(b + w * panel + v * lanes);
#pragma GCC unroll 24
        for (int r = 0; r < rows; ++r) {
          const vf32 value = splat(row[r][i + w]);
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) sum[w][r][v] = fma(value, weight[v], sum[w][r][v]);
        }
      }
    if constexpr (ways > 1)
      for (; i < a.n; ++i, b += panel)
#pragma GCC unroll 24
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
          for (int v = 0; v < vectors; ++v) sum[0][r][v] = fma(splat(row[r][i]), load(b + v * lanes), sum[0][r][v]);
  }
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      vf32 value = sum[0][r][v];
#pragma GCC unroll 4
      for (int w = 1; w < ways; ++w) value = value + sum[w][r][v];
      float* to = c + r * panel + v * lanes;
      store(to, add ? load(to) + value : value);
    }
}

using Multiply = void (*)(const Left&, const float*, float*, bool);
constexpr Multiply multiply_rows[] = {
    nullptr,        multiply<1, 2>, multiply<2, 2>, multiply<3, 2>,  multiply<4, 2>,  multiply<5, 2>,  multiply<6, 2>,
#if defined(__AVX512F__)
    multiply<7, 2>, multiply<8, 2>, multiply<9, 2>, multiply<10, 2>, multiply<11, 2>, multiply<12, 2>,
#endif
};
// For a panel whose second vector is empty.
constexpr Multiply multiply_narrow[] = {
    nullptr,         multiply<1, 1>,  multiply<2, 1>,  multiply<3, 1>,  multiply<4, 1>,  multiply<5, 1>,
    multiply<6, 1>,  multiply<7, 1>,  multiply<8, 1>,  multiply<9, 1>,  multiply<10, 1>, multiply<11, 1>,
    multiply<12, 1>,
#if defined(__AVX512F__)
    multiply<13, 1>, multiply<14, 1>, multiply<15, 1>, multiply<16, 1>, multiply<17, 1>, multiply<18, 1>,
    multiply<19, 1>, multiply<20, 1>, multiply<21, 1>, multiply<22, 1>, multiply<23, 1>, multiply<24, 1>,
#endif
};

struct Range {
  int64_t begin, end;
};

class Convolution {
 public:
  Convolution(const ConvGemmArgs& args, const ConvGemmPlan& plan)
      : args_(args),
        plan_(plan),
        taps_(args.kernel * args.kernel),
        pixels_(args.batch * args.out_height * args.out_width),
        height_(args.upsample ? 2 * args.height : args.height),
        width_(args.upsample ? 2 * args.width : args.width),
        pointwise_(args.kernel == 1 && args.stride == 1 && args.padding == 0 && !args.upsample &&
                   args.out_height == args.height && args.out_width == args.width),
        in_front_(args.gain != nullptr || args.silu),
        gathers_(taps_ > 1 && args.channels < few_channels),
        source_stride_(in_front_ ? odd_lines(args.channels) : args.x_stride),
        gathered_stride_(odd_lines(taps_ * args.channels)) {}

  int64_t scratch() {
    const Places places = places_of(nullptr);
    return places.end - static_cast<char*>(nullptr);
  }

  void run(char* memory, int64_t begin, int64_t end) {
    places_ = places_of(memory);
    for (int64_t i = 0; i < args_.channels; ++i) places_.zeros[i] = 0;
    const int64_t panels = (args_.outputs + panel - 1) / panel;
    const int64_t share = (panels + plan_.shares - 1) / plan_.shares;
    int64_t prepared = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / plan_.shares, from = item % plan_.shares * share;
      if (block != prepared) prepare(block);
      prepared = block;
      for (int64_t p = from; p < smaller(from + share, panels); ++p) multiply_panel(p);
    }
  }

 private:
  struct Places {
    float *zeros, *source, *gathered, *products;
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
    take(places.products, plan_.pixels * panel);
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
    source_ = args_.x;
    if (in_front_) {
      const Range range = pixels_read(first_, first_ + count_);
      transform(range);
      source_ = places_.source - range.begin * source_stride_;
    }
    find_rows();
    if (gathers_) gather();
  }

  void transform(Range pixels) const {
    float* to = places_.source;
    for (int64_t p = pixels.begin; p < pixels.end; ++p, to += source_stride_) {
      const float* from = args_.x + p * args_.x_stride;
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
    int64_t x = first_ % args_.out_width, row = first_ / args_.out_width;
    for (int64_t r = 0; r < count_; ++r) {
      const int64_t y = row % args_.out_height, sample = row / args_.out_height;
      if (args_.shift != nullptr) places_.shifts[r] = args_.shift + sample * args_.shift_stride;
      if (pointwise_)
        places_.rows[r] = source_ + (first_ + r) * source_stride_;
      else
        for (int64_t tap = 0; tap < taps_; ++tap)
          places_.rows[tap * plan_.pixels + r] = row_at(sample, y * args_.stride - args_.padding + tap / args_.kernel,
                                                        x * args_.stride - args_.padding + tap % args_.kernel);
      if (++x == args_.out_width) {
        x = 0;
        ++row;
      }
    }
  }

  const float* row_at(int64_t sample, int64_t y, int64_t x) const {
    if (y < 0 || y >= height_ || x < 0 || x >= width_) return places_.zeros;
    if (args_.upsample) {
      y /= 2;
      x /= 2;
    }
    return source_ + ((sample * args_.height + y) * args_.width + x) * source_stride_;
  }

  // The channels of all taps side by side.
  void gather() const {
    for (int64_t r = 0; r < count_; ++r) {
      float* to = places_.gathered + r * gathered_stride_;
      for (int64_t tap = 0; tap < taps_; ++tap) {
        const float* from = places_.rows[tap * plan_.pixels + r];
        for (int64_t i = 0; i < args_.channels; ++i) *to++ = from[i];
      }
      places_.rows[r] = places_.gathered + r * gathered_stride_;
    }
  }

  // All pixels of the block with panel p.
  void multiply_panel(int64_t p) const {
    const int64_t k = p * panel, n = smaller(panel, args_.outputs - k);
    const bool narrow = n <= lanes;
    const int64_t step = narrow ? 2 * most_rows : most_rows;
    const auto* kernels = narrow ? multiply_narrow : multiply_rows;
    const int64_t taps = gathers_ ? 1 : taps_, channels = gathers_ ? taps_ * args_.channels : args_.channels;
    const int64_t taps_at_once = larger(depth / channels, 1), at_once = smaller(channels, depth);
    const float* b = args_.weights + p * taps_ * args_.channels * panel;
    for (int64_t t = 0; t < taps; t += taps_at_once)
      for (int64_t c = 0; c < channels; c += at_once) {
        Left a{nullptr, plan_.pixels, smaller(taps_at_once, taps - t), c, smaller(at_once, channels - c)};
        const bool add = t > 0 || c > 0, last = t + a.taps == taps && c + a.n == channels;
        for (int64_t r = 0; r < count_; r += step) {
          const int64_t rows = smaller(step, count_ - r);
          a.rows = places_.rows + t * plan_.pixels + r;
          kernels[rows](a, b, places_.products + r * panel, add);
          if (last) write(r, rows, k, n);
        }
        b += a.taps * a.n * panel;
      }
  }

  // Outputs [k, k + n) of pixels [r, r + rows) of the block.
  void write(int64_t r, int64_t rows, int64_t k, int64_t n) const {
    const vf32 scale = splat(args_.scale);
    for (; rows > 0; ++r, --rows) {
      const float *from = places_.products + r * panel,
                  *shift = args_.shift == nullptr ? nullptr : places_.shifts[r] + k;
      const float* residual =
          args_.residual == nullptr ? nullptr : args_.residual + (first_ + r) * args_.residual_stride + k;
      float* to = args_.out + (first_ + r) * args_.out_stride + k;
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
  const int64_t taps_, pixels_;
  const int64_t height_, width_;  // of the image that the kernel passes over
  const bool pointwise_;          // pixel i of out depends on pixel i of x
  const bool in_front_, gathers_;
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

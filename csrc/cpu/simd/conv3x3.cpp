// A block of tiles goes through three stages, whose data stay in the second-level cache: inputs of all channels are
// transformed; for some panels of outputs at a time, they are multiplied by the weights, one matrix product for each
// point; and the products are transformed to outputs.
#include "cpu/simd/conv3x3.h"

#include "cpu/simd/silu.h"
#include "cpu/simd/tails.h"
#include "cpu/simd/winograd.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;

constexpr int lanes = lanes32, panel = 2 * lanes;
#if defined(__AVX512F__)
constexpr int most_rows = 12;  // of a product that fits into the registers, with a row of weights
#else
constexpr int most_rows = 6;
#endif
constexpr int64_t depth = 64;         // channels that are summed up at a time: half the error of 256
constexpr int64_t chunk = 4 * lanes;  // channels of a strip, which the first-level cache holds
constexpr int64_t line = 16;          // elements of a cache line

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}
// An odd number of cache lines: planes that lie a power of two apart would share a set of the cache.
constexpr int64_t plane(int64_t n) {
  return (round_up(n, line) / line | 1) * line;
}

// c (rows, panel) = or += a (rows, n) b (n, panel); b is packed. What is added is summed up first: a sum of sums errs
// less.
template <int rows>
void multiply(const float* a, int64_t a_stride, const float* b, int64_t n, float* c, int64_t c_stride, bool add) {
  vf32 low[rows], high[rows];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    low[r] = splat(0.0f);
    high[r] = splat(0.0f);
  }
  for (int64_t i = 0; i < n; ++i, b += panel) {
    const vf32 b_low = load(b), b_high = load(b + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const vf32 value = splat(a[r * a_stride + i]);
      low[r] = fma(value, b_low, low[r]);
      high[r] = fma(value, b_high, high[r]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    float* to = c + r * c_stride;
    store(to, add ? load(to) + low[r] : low[r]);
    store(to + lanes, add ? load(to + lanes) + high[r] : high[r]);
  }
}

using Multiply = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
constexpr Multiply multiply_rows[] = {
    nullptr,     multiply<1>, multiply<2>, multiply<3>,  multiply<4>,  multiply<5>,  multiply<6>,
#if defined(__AVX512F__)
    multiply<7>, multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>,
#endif
};

template <int m>
class Convolution {
  using W = Winograd<m>;
  static constexpr int size = W::size;

 public:
  Convolution(const Conv3x3Args& args, const Conv3x3Plan& plan)
      : args_(args),
        plan_(plan),
        across_((args.width + m - 1) / m),
        down_((args.height + m - 1) / m),
        columns_(across_ * m + 2),
        tiles_(plan.strips * across_),
        depth_(round_up(args.channels, lanes)),
        input_plane_(plane(tiles_ * depth_)),
        product_row_(plan.panels * panel),
        product_plane_(plane(tiles_ * product_row_)) {}

  Conv3x3Scratch scratch() const {
    return {round_up(size * columns_ * chunk, line), size * size * input_plane_, size * size * product_plane_};
  }

  void run(float* memory, int64_t begin, int64_t end) {
    const Conv3x3Scratch sizes = scratch();
    strip_ = memory;
    inputs_ = strip_ + sizes.strip;
    products_ = inputs_ + sizes.inputs;
    const int64_t panels = (args_.outputs + panel - 1) / panel;
    const int64_t share = (panels + plan_.shares - 1) / plan_.shares;
    int64_t transformed = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / plan_.shares, from = item % plan_.shares * share;
      first_ = block * plan_.strips;
      count_ = smaller(plan_.strips, args_.batch * down_ - first_);
      if (block != transformed) transform_inputs();
      transformed = block;
      for (int64_t p = from; p < smaller(from + share, panels); p += plan_.panels) {
        const int64_t n = smaller(plan_.panels, smaller(from + share, panels) - p);
        multiply_block(p, n);
        write_outputs(p * panel, smaller(n * panel, args_.outputs - p * panel));
      }
    }
  }

 private:
  void transform_inputs() {
    for (int64_t s = 0; s < count_; ++s) {
      const int64_t sample = (first_ + s) / down_, row = (first_ + s) % down_ * m - 1;
      for (int64_t c = 0; c < args_.channels; c += chunk) {
        const int64_t n = smaller(chunk, args_.channels - c);
        read_strip(sample, row, c, n);
        for (int64_t t = 0; t < across_; ++t)
          for (int64_t i = 0; i < n; i += lanes)
            transform(strip_ + t * m * chunk + i, inputs_ + (s * across_ + t) * depth_ + c + i);
      }
    }
  }

  // Rows [row, row + size) of channels [c, c + n) with what stands in front, zeros around them.
  void read_strip(int64_t sample, int64_t row, int64_t c, int64_t n) {
    for (int64_t r = 0; r < size; ++r) {
      float* to = strip_ + r * columns_ * chunk;
      const int64_t y = row + r;
      if (y < 0 || y >= args_.height) {
        clear(to, columns_);
        continue;
      }
      clear(to, 1);
      clear(to + (args_.width + 1) * chunk, columns_ - args_.width - 1);
      to += chunk;
      if (args_.gain != nullptr) {
        const float *gain = args_.gain + sample * args_.gain_stride + c,
                    *offset = args_.offset + sample * args_.offset_stride + c;
        read_row(sample, y, c, n, to, [&](int64_t i, vf32 value, auto part) __attribute__((always_inline)) {
          value = fma(value, load(gain + i, part), load(offset + i, part));
          return args_.silu ? silu<false>(value) : value;
        });
      } else if (args_.silu) {
        read_row(sample, y, c, n, to, [](int64_t, vf32 value, auto) { return silu<false>(value); });
      } else {
        read_row(sample, y, c, n, to, [](int64_t, vf32 value, auto) { return value; });
      }
    }
  }

  // Channels [c, c + n) of a row of pixels, through f(channel - c, vector, part).
  template <class F>
  void read_row(int64_t sample, int64_t y, int64_t c, int64_t n, float* to, F&& f) const {
    const int64_t times = args_.upsample ? 2 : 1;
    const int64_t height = args_.height / times, width = args_.width / times;
    const float* from = args_.x + (sample * height + y / times) * width * args_.x_stride + c;
    for (int64_t x = 0; x < width; ++x, from += args_.x_stride, to += times * chunk)
      each_vector<float>(n, [&](int64_t i, auto part) __attribute__((always_inline)) {
        const vf32 value = f(i, load(from + i, part), part);
        store(to + i, value);
        if (args_.upsample) store(to + chunk + i, value);
      });
  }

  static void clear(float* to, int64_t columns) {
    for (int64_t i = 0; i < columns * chunk; i += lanes) store(to + i, splat(0.0f));
  }

  // A vector of channels of one tile, to its place in the plane of each point.
  __attribute__((always_inline)) void transform(const float* from, float* to) const {
    vf32 d[size][size];
    for (int j = 0; j < size; ++j) {
      vf32 column[size];
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) column[i] = load(from + (i * columns_ + j) * chunk);
      W::input(column);
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) d[i][j] = column[i];
    }
    for (int i = 0; i < size; ++i) {
      W::input(d[i]);
#pragma GCC unroll 6
      for (int j = 0; j < size; ++j) store(to + (i * size + j) * input_plane_, d[i][j]);
    }
  }

  // The products of all tiles of the block with panels [p, p + n).
  void multiply_block(int64_t p, int64_t n) const {
    const int64_t tiles = count_ * across_, weights = size * size * args_.channels * panel;
    for (int64_t point = 0; point < size * size; ++point)
      for (int64_t q = 0; q < n; ++q)
        for (int64_t c = 0; c < args_.channels; c += depth) {
          const float* b = args_.weights + (p + q) * weights + (point * args_.channels + c) * panel;
          for (int64_t t = 0; t < tiles; t += most_rows) {
            const float* a = inputs_ + point * input_plane_ + t * depth_ + c;
            float* to = products_ + point * product_plane_ + t * product_row_ + q * panel;
            multiply_rows[smaller(most_rows, tiles - t)](a, depth_, b, smaller(depth, args_.channels - c), to,
                                                         product_row_, c > 0);
          }
        }
  }

  // Outputs [k, k + n) of the block.
  void write_outputs(int64_t k, int64_t n) const {
    for (int64_t s = 0; s < count_; ++s) {
      const int64_t sample = (first_ + s) / down_, row = (first_ + s) % down_ * m;
      const int64_t rows = smaller(m, args_.height - row);
      for (int64_t t = 0; t < across_; ++t) {
        const float* from = products_ + (s * across_ + t) * product_row_;
        const int64_t pixel = (sample * args_.height + row) * args_.width + t * m;
        const int64_t columns = smaller(m, args_.width - t * m);
        each_vector<float>(n, [&](int64_t i, auto part) __attribute__((always_inline)) {
          write_tile(from + i, sample, pixel, k + i, rows, columns, part);
        });
      }
    }
  }

  // What is added to output k of all pixels of a sample.
  template <class Part>
  __attribute__((always_inline)) vf32 constant(int64_t sample, int64_t k, Part part) const {
    vf32 value = splat(0.0f);
    if (args_.bias != nullptr) value = value + load(args_.bias + k, part);
    if (args_.shift != nullptr) value = value + load(args_.shift + sample * args_.shift_stride + k, part);
    return value;
  }

  template <class Part>
  __attribute__((always_inline)) void write_tile(const float* from, int64_t sample, int64_t pixel, int64_t k,
                                                 int64_t rows, int64_t columns, Part part) const {
    vf32 y[m][size];
    for (int j = 0; j < size; ++j) {
      vf32 column[size], out[m];
#pragma GCC unroll 6
      for (int i = 0; i < size; ++i) column[i] = load(from + (i * size + j) * product_plane_);
      W::output(column, out);
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) y[i][j] = out[i];
    }
    const vf32 added = constant(sample, k, part), scale = splat(args_.scale);
    for (int64_t i = 0; i < rows; ++i, pixel += args_.width) {
      vf32 out[m];
      W::output(y[i], out);
      for (int64_t j = 0; j < columns; ++j) {
        vf32 value = out[j] + added;
        if (args_.residual != nullptr)
          value = value + load(args_.residual + (pixel + j) * args_.residual_stride + k, part);
        store(args_.out + (pixel + j) * args_.out_stride + k, value * scale, part);
      }
    }
  }

  const Conv3x3Args& args_;
  const Conv3x3Plan plan_;
  const int64_t across_, down_;  // tiles of an image
  const int64_t columns_;        // of a strip
  const int64_t tiles_;          // of a block, at most
  const int64_t depth_, input_plane_, product_row_, product_plane_;
  float *strip_ = nullptr, *inputs_ = nullptr, *products_ = nullptr;
  int64_t first_ = 0, count_ = 0;  // strips of the block at hand
};

// One panel of transformed weights, computed in double and rounded once.
template <int m>
void transform_weights(const Conv3x3Weights& weights, int64_t p) {
  constexpr int size = Winograd<m>::size;
  constexpr auto& rows = Winograd<m>::weights.rows;
  const int64_t outputs = smaller(panel, weights.outputs - p * panel);
  const int64_t to_output = weights.strides[weights.turned ? 1 : 0],
                to_channel = weights.strides[weights.turned ? 0 : 1];
  float* to = weights.to + p * size * size * weights.channels * panel;
  for (int64_t c = 0; c < weights.channels; ++c) {
    double w[3][3][panel] = {}, half[size][3][panel];
    for (int64_t k = 0; k < outputs; ++k)
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
          const float* from = weights.from + (p * panel + k) * to_output + c * to_channel;
          w[i][j][k] = from[(weights.turned ? 2 - i : i) * weights.strides[2] +
                            (weights.turned ? 2 - j : j) * weights.strides[3]];
        }
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < 3; ++j)
        for (int k = 0; k < panel; ++k)
          half[i][j][k] = rows[i][0] * w[0][j][k] + rows[i][1] * w[1][j][k] + rows[i][2] * w[2][j][k];
    for (int i = 0; i < size; ++i)
      for (int j = 0; j < size; ++j) {
        float* line = to + ((i * size + j) * weights.channels + c) * panel;
        for (int k = 0; k < panel; ++k)
          line[k] =
              static_cast<float>(rows[j][0] * half[i][0][k] + rows[j][1] * half[i][1][k] + rows[j][2] * half[i][2][k]);
      }
  }
}

template <class F>
auto with_tile(const Conv3x3Args& args, const Conv3x3Plan& plan, F&& f) {
  if (args.tile == 2) {
    Convolution<2> convolution(args, plan);
    return f(convolution);
  }
  Convolution<4> convolution(args, plan);
  return f(convolution);
}

}  // namespace

int64_t conv3x3_panel() {
  return panel;
}

void conv3x3_weights(const Conv3x3Weights& weights, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p)
    weights.tile == 2 ? transform_weights<2>(weights, p) : transform_weights<4>(weights, p);
}

Conv3x3Scratch conv3x3_scratch(const Conv3x3Args& args, const Conv3x3Plan& plan) {
  return with_tile(args, plan, [](const auto& convolution) { return convolution.scratch(); });
}

void conv3x3(const Conv3x3Args& args, const Conv3x3Plan& plan, float* scratch, int64_t begin, int64_t end) {
  with_tile(args, plan, [&](auto& convolution) { convolution.run(scratch, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

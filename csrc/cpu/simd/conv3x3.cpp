// A block of tiles goes through three stages, whose data stay in the second-level cache: inputs of all channels are
// transformed; for some panels of outputs at a time, they are multiplied by the weights, one matrix product for each
// point; and the products are transformed to outputs. Transformed inputs lie in memory as products read them, (point,
// `depth` channels, tile), since rows that lie a power of two apart would push each other out of the first-level cache.
#include "cpu/simd/conv3x3.h"

#include "cpu/simd/panel.h"
#include "cpu/simd/silu.h"
#include "cpu/simd/tails.h"
#include "cpu/simd/winograd.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t depth = 64;         // channels that are summed up at a time: half the error of 256
constexpr int64_t chunk = 4 * lanes;  // channels of a strip, which the first-level cache holds; a part of `depth`
constexpr int ahead = most_rows * panel / 96;  // cache lines of weights that are asked for in four steps of a product

// c (rows, panel) = or += a (rows, n) b (n, panel); rows of a are `depth` apart, b is packed. What is added is summed
// up first: a sum of sums errs less. Weights from `next` on are asked for meanwhile: no hardware sees where they go on.
template <int rows>
void multiply(const float* a, const float* b, int64_t n, float* c, int64_t c_stride, bool add, const float* next) {
  vf32 low[rows], high[rows];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    low[r] = splat(0.0f);
    high[r] = splat(0.0f);
  }
  const auto step = [&]() __attribute__((always_inline)) {
    const vf32 b_low = load(b), b_high = load(b + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const vf32 value = splat(a[r * depth]);
      low[r] = fma(value, b_low, low[r]);
      high[r] = fma(value, b_high, high[r]);
    }
    ++a;
    b += panel;
  };
  for (; n >= 4; n -= 4, next += ahead * line) {
#pragma GCC unroll 4
    for (int i = 0; i < ahead; ++i) __builtin_prefetch(next + i * line);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) step();
  }
  for (; n > 0; --n) step();
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    float* to = c + r * c_stride;
    store(to, add ? load(to) + low[r] : low[r]);
    store(to + lanes, add ? load(to + lanes) + high[r] : high[r]);
  }
}

using Multiply = void (*)(const float*, const float*, int64_t, float*, int64_t, bool, const float*);
constexpr Multiply multiply_rows[] = {
    nullptr,     multiply<1>, multiply<2>, multiply<3>,  multiply<4>,  multiply<5>,  multiply<6>,
#if defined(__AVX512F__)
    multiply<7>, multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>,
#endif
};

// T: of the images in memory; all else is float.
template <int m, class T>
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
        input_plane_(odd_lines(round_up(args.channels, depth) * tiles_)),
        product_row_(plan.panels * panel),
        product_plane_(odd_lines(tiles_ * product_row_)) {}

  Conv3x3Scratch scratch() const {
    const int64_t strip = size * columns_ * chunk, tile = (m * size + 1) * product_row_;
    return {round_up(strip < tile ? tile : strip, line), size * size * input_plane_, size * size * product_plane_};
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
        float* to = inputs_ + c / depth * depth * tiles_ + s * across_ * depth + c % depth;
        for (int64_t t = 0; t < across_; ++t, to += depth) write_points(strip_ + t * m * size * chunk, n, to);
      }
    }
  }

  // Channels [c, c + n) of rows [row, row + size), with what stands in front and zeros around, transformed along
  // columns: (columns_, size, chunk).
  void read_strip(int64_t sample, int64_t row, int64_t c, int64_t n) {
    if (args_.gain != nullptr) {
      const float *gain = args_.gain + sample * args_.gain_stride + c,
                  *offset = args_.offset + sample * args_.offset_stride + c;
      read_columns(sample, row, c, n, [&](int64_t i, vf32 value, auto part) __attribute__((always_inline)) {
        value = fma(value, load(gain + i, part), load(offset + i, part));
        return args_.silu ? silu<false>(value) : value;
      });
    } else if (args_.silu) {
      read_columns(sample, row, c, n, [](int64_t, vf32 value, auto) { return silu<false>(value); });
    } else {
      read_columns(sample, row, c, n, [](int64_t, vf32 value, auto) { return value; });
    }
  }

  template <class F>
  void read_columns(int64_t sample, int64_t row, int64_t c, int64_t n, F&& f) {
    const int64_t times = args_.upsample ? 2 : 1;
    const int64_t height = args_.height / times, width = args_.width / times;
    const T *x0 = static_cast<const T*>(args_.x), *rows[size];
    for (int64_t i = 0; i < size; ++i) {
      const bool inside = row + i >= 0 && row + i < args_.height;
      rows[i] = inside ? x0 + (sample * height + (row + i) / times) * width * args_.x_stride + c : nullptr;
    }
    float* to = strip_;
    clear(to, 1);
    to += size * chunk;
    for (int64_t x = 0; x < width; ++x, to += times * size * chunk)
      each_vector<T>(n, [&](int64_t i, auto part) __attribute__((always_inline)) {
        vf32 column[size];
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j)
          column[j] = rows[j] != nullptr ? f(i, load(rows[j] + x * args_.x_stride + i, part), part) : splat(0.0f);
        W::input(column);
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j) store(to + j * chunk + i, column[j]);
        if (args_.upsample)
#pragma GCC unroll 6
          for (int j = 0; j < size; ++j) store(to + (size + j) * chunk + i, column[j]);
      });
    clear(to, columns_ - args_.width - 1);
  }

  static void clear(float* to, int64_t columns) {
    for (int64_t i = 0; i < columns * size * chunk; i += lanes) store(to + i, splat(0.0f));
  }

  // n channels of one tile, transformed along rows, to their places in the plane of each point.
  void write_points(const float* from, int64_t n, float* to) const {
    for (int64_t i = 0; i < size; ++i, from += chunk)
      for (int64_t c = 0; c < n; c += lanes) {
        vf32 row[size];
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j) row[j] = load(from + j * size * chunk + c);
        W::input(row);
#pragma GCC unroll 6
        for (int j = 0; j < size; ++j) store(to + (i * size + j) * input_plane_ + c, row[j]);
      }
  }

  // The products of all tiles of the block with panels [p, p + n).
  void multiply_block(int64_t p, int64_t n) const {
    const int64_t tiles = count_ * across_, channels = args_.channels;
    const auto weights = [&](int64_t point, int64_t c, int64_t q) {
      return args_.weights + (((p + q) * size * size + point) * channels + c) * panel;
    };
    for (int64_t point = 0; point < size * size; ++point)
      for (int64_t c = 0; c < channels; c += depth)
        for (int64_t q = 0; q < n; ++q) {
          const float* b = weights(point, c, q);
          const float* next = q + 1 < n                 ? weights(point, c, q + 1)
                              : c + depth < channels    ? weights(point, c + depth, 0)
                              : point + 1 < size * size ? weights(point + 1, 0, 0)
                                                        : weights(0, 0, n);
          const float* a = inputs_ + point * input_plane_ + c * tiles_;
          float* to = products_ + point * product_plane_ + q * panel;
          const int64_t deep = smaller(depth, channels - c);
          for (int64_t t = 0, rows; t < tiles; t += rows, next += depth / 4 * ahead * line) {
            rows = rows_of(tiles - t);
            multiply_rows[rows](a + t * depth, b, deep, to + t * product_row_, product_row_, c > 0, next);
          }
        }
  }

  // Rows of the next product: the last two are alike, since few rows leave the multipliers waiting.
  static int64_t rows_of(int64_t left) {
    return left <= most_rows ? left : left < 2 * most_rows ? (left + 1) / 2 : most_rows;
  }

  // Outputs [k, k + n) of the block.
  void write_outputs(int64_t k, int64_t n) const {
    float *half = strip_, *added = half + m * size * product_row_;
    for (int64_t s = 0; s < count_; ++s) {
      const int64_t sample = (first_ + s) / down_, row = (first_ + s) % down_ * m;
      const int64_t rows = smaller(m, args_.height - row);
      add_constants(sample, k, n, added);
      Moments moments;
      if (args_.statistics != nullptr) {
        const int64_t stride = args_.statistics_stride;
        float* to = args_.statistics + 3 * (first_ + s) * stride + k;
        moments = {to, to + stride, to + 2 * stride};
      }
      for (int64_t t = 0; t < across_; ++t) {
        read_products(products_ + (s * across_ + t) * product_row_, n, half);
        const int64_t pixel = (sample * args_.height + row) * args_.width + t * m;
        const int64_t columns = smaller(m, args_.width - t * m);
        for (int64_t i = 0; i < rows; ++i)
          write_row(half + i * size * product_row_, added, pixel + i * args_.width, k, n, columns, moments);
      }
    }
  }

  // What is added to outputs [k, k + n) of all pixels of a sample.
  void add_constants(int64_t sample, int64_t k, int64_t n, float* added) const {
    each_vector<float>(n, [&](int64_t i, auto part) {
      vf32 value = splat(0.0f);
      if (args_.bias != nullptr) value = value + load(args_.bias + k + i, part);
      if (args_.shift != nullptr) value = value + load(args_.shift + sample * args_.shift_stride + k + i, part);
      store(added + i, value);
    });
  }

  // Products of one tile, transformed along columns: (m, size, product_row_).
  void read_products(const float* from, int64_t n, float* to) const {
    for (int64_t j = 0; j < size; ++j)
      for (int64_t k = 0; k < n; k += lanes) {
        vf32 column[size], out[m];
#pragma GCC unroll 6
        for (int i = 0; i < size; ++i) column[i] = load(from + (i * size + j) * product_plane_ + k);
        W::output(column, out);
#pragma GCC unroll 4
        for (int i = 0; i < m; ++i) store(to + (i * size + j) * product_row_ + k, out[i]);
      }
  }

  // Of each output, over the pixels of a strip: see Conv3x3Args::statistics. The center is the mean of the first few.
  struct Moments {
    float *center = nullptr, *sum = nullptr, *squares = nullptr;
    bool begun = false;

    __attribute__((always_inline)) void add(int64_t k, const vf32 (&value)[m], int64_t columns, auto part) const {
      if (!begun) {
        vf32 total = value[0];
        for (int j = 1; j < columns; ++j) total = total + value[j];
        store(center + k, total * splat(1.0f / static_cast<float>(columns)), part);
        store(sum + k, splat(0.0f), part);
        store(squares + k, splat(0.0f), part);
      }
      const vf32 from = load(center + k, part);
      vf32 total = load(sum + k, part), square = load(squares + k, part);
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) {
        if (j >= columns) break;
        const vf32 difference = value[j] - from;
        total = total + difference;
        square = fma(difference, difference, square);
      }
      store(sum + k, total, part);
      store(squares + k, square, part);
    }
  };

  // A row of pixels of a tile, from what has been transformed along columns.
  void write_row(const float* from, const float* added, int64_t pixel, int64_t k, int64_t n, int64_t columns,
                 Moments& moments) const {
    const vf32 scale = splat(args_.scale);
    const T* residual = static_cast<const T*>(args_.residual) + pixel * args_.residual_stride + k;
    T* to = static_cast<T*>(args_.out) + pixel * args_.out_stride + k;
    each_vector<T>(n, [&](int64_t c, auto part) __attribute__((always_inline)) {
      vf32 row[size], out[m];
#pragma GCC unroll 6
      for (int j = 0; j < size; ++j) row[j] = load(from + j * product_row_ + c);
      W::output(row, out);
      const vf32 constant = load(added + c);
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) {
        if (j >= columns) break;
        out[j] = out[j] + constant;
        if (args_.residual != nullptr) out[j] = out[j] + load(residual + j * args_.residual_stride + c, part);
        out[j] = out[j] * scale;
        store(to + j * args_.out_stride + c, out[j], part);
      }
      if (args_.statistics != nullptr) moments.add(c, out, columns, part);
    });
    moments.begun = true;
  }

  const Conv3x3Args& args_;
  const Conv3x3Plan plan_;
  const int64_t across_, down_;  // tiles of an image
  const int64_t columns_;        // of a strip
  const int64_t tiles_;          // of a block, at most
  const int64_t input_plane_, product_row_, product_plane_;
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

template <int m>
struct Tile {
  static constexpr int value = m;
};

// f(convolution) of the tile and of the type of the images that `args` name.
template <class F>
auto with_convolution(const Conv3x3Args& args, const Conv3x3Plan& plan, F&& f) {
  const auto with = [&](auto tile, auto like) {
    Convolution<decltype(tile)::value, decltype(like)> convolution(args, plan);
    return f(convolution);
  };
  if (args.dtype == Dtype::bf16) return args.tile == 2 ? with(Tile<2>{}, bf16{}) : with(Tile<4>{}, bf16{});
  return args.tile == 2 ? with(Tile<2>{}, float{}) : with(Tile<4>{}, float{});
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
  return with_convolution(args, plan, [](const auto& convolution) { return convolution.scratch(); });
}

void conv3x3(const Conv3x3Args& args, const Conv3x3Plan& plan, float* scratch, int64_t begin, int64_t end) {
  with_convolution(args, plan, [&](auto& convolution) { convolution.run(scratch, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

// A panel of queries at a time, one query per lane of two vectors: scores^T = k q^T and out^T = v^T p^T. Keys and
// values are then read as they lie, one number at a time, and only queries and results are transposed; the softmax runs
// down the lanes; and no size leaves a part of a vector but the number of queries, which zeros fill up. The maximum is
// subtracted from the scores of a block of keys; a later block with a larger one scales down what was summed before
// (Milakov and Gimelshein 2018, algorithm 3).
#include "cpu/simd/attention.h"

#include "cpu/simd/exp.h"
#include "cpu/simd/panel.h"
#include "cpu/simd/tails.h"
#include "cpu/simd/transpose.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;

constexpr int64_t block_keys = 1024;  // whose scores exist at a time
constexpr int64_t depth = 64;         // terms that are summed up at a time: half the error of 256

// c (rows, panel) = or += a b, with b (n, panel) and a[r, i] at a[r * row + i * step].
template <int rows>
void multiply(const float* a, int64_t row, int64_t step, const float* b, int64_t n, float* c, bool add) {
  vf32 low[rows] = {}, high[rows] = {};
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; ++i, a += step, b += panel) {
    const vf32 b_low = load(b), b_high = load(b + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const vf32 value = splat(a[r * row]);
      low[r] = fma(value, b_low, low[r]);
      high[r] = fma(value, b_high, high[r]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    float* to = c + r * panel;
    store(to, add ? load(to) + low[r] : low[r]);
    store(to + lanes, add ? load(to + lanes) + high[r] : high[r]);
  }
}

using Multiply = void (*)(const float*, int64_t, int64_t, const float*, int64_t, float*, bool);
constexpr Multiply multiply_rows[] = {
    nullptr,     multiply<1>, multiply<2>, multiply<3>,  multiply<4>,  multiply<5>,  multiply<6>,
#if defined(__AVX512F__)
    multiply<7>, multiply<8>, multiply<9>, multiply<10>, multiply<11>, multiply<12>,
#endif
};

// The same for any number of rows and of panels, b_plane and c_plane elements apart: what is read of a serves them all.
struct Panels {
  int64_t count, b_plane, c_plane;

  void product(const float* a, int64_t row, int64_t step, int64_t rows, const float* b, int64_t n, float* c,
               bool add) const {
    for (int64_t i = 0; i < n; i += depth)
      for (int64_t r = 0; r < rows; r += most_rows)
        for (int64_t p = 0; p < count; ++p)
          multiply_rows[smaller(most_rows, rows - r)](a + r * row + i * step, row, step, b + p * b_plane + i * panel,
                                                      smaller(depth, n - i), c + p * c_plane + r * panel, add || i > 0);
  }
};

// f(Whole or First) for n of `lanes` elements.
template <class F>
FASTSCORE_INLINE void with_part(int64_t n, F&& f) {
  n >= lanes ? f(Whole{}) : f(First{n});
}

// A panel (channels, panel) of rows, zeros in the lanes that have none. Writes whole vectors of channels.
void read_panel(const float* from, int64_t stride, int64_t count, int64_t channels, float* to) {
  for (int64_t c = 0; c < channels; c += lanes)
    for (int64_t q = 0; q < panel; q += lanes)
      with_part(channels - c, [&](auto part) {
        vf32 square[lanes];
        for (int i = 0; i < lanes; ++i)
          square[i] = q + i < count ? load(from + (q + i) * stride + c, part) : splat(0.0f);
        transpose(square);
        for (int i = 0; i < lanes; ++i) store(to + (c + i) * panel + q, square[i]);
      });
}

// The panel times a number per lane, as rows.
void write_panel(const float* from, const vf32 (&factor)[2], int64_t count, int64_t channels, float* to,
                 int64_t stride) {
  for (int64_t c = 0; c < channels; c += lanes)
    for (int64_t q = 0; q < smaller(panel, count); q += lanes)
      with_part(channels - c, [&](auto part) {
        vf32 square[lanes];
        for (int i = 0; i < lanes; ++i) square[i] = load(from + (c + i) * panel + q) * factor[q / lanes];
        transpose(square);
        for (int64_t i = 0; i < smaller(lanes, count - q); ++i) store(to + (q + i) * stride + c, square[i], part);
      });
}

// exp(-v) for v that is not negative, but by rounding.
FASTSCORE_INLINE vf32 weight(vf32 v) {
  using Range = ExpRange<vf32>;
  const auto parts = exp_negative(clamp(v, Range::least, Range::greatest));
  return parts.scale * parts.poly;
}

struct Softmax {
  vf32 greatest[2], total[2];  // of scale * score, so far; of the weights

  // Scores (n, panel) to weights. What earlier weights are multiplied by is left in `factor`.
  void add(float* scores, int64_t n, float scale, bool first, vf32 (&factor)[2]) {
    constexpr int ways = 4;  // sums beside each other
    for (int half = 0; half < 2; ++half) {
      float* const at = scores + half * lanes;
      const auto scaled = [&](int64_t i) { return load(at + i * panel) * splat(scale); };
      vf32 most[ways], added{};
      for (auto& value : most) value = scaled(0);
      int64_t i = 0;
      for (; i + ways <= n; i += ways)
        for (int k = 0; k < ways; ++k) most[k] = max(scaled(i + k), most[k]);
      for (; i < n; ++i) most[0] = max(scaled(i), most[0]);
      const vf32 block = max(max(most[0], most[1]), max(most[2], most[3]));
      const vf32 now = first ? block : max(block, greatest[half]);
      const auto weigh = [&](int64_t j) {
        const vf32 w = weight(now - scaled(j));
        store(at + j * panel, w);
        return w;
      };
      for (i = 0; i < n;) {
        vf32 sum[ways] = {};
        const int64_t end = smaller(i + depth, n);
        for (; i + ways <= end; i += ways)
          for (int k = 0; k < ways; ++k) sum[k] += weigh(i + k);
        for (; i < end; ++i) sum[0] += weigh(i);
        added += (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
      factor[half] = first ? splat(0.0f) : weight(now - greatest[half]);
      total[half] = first ? added : fma(total[half], factor[half], added);
      greatest[half] = now;
    }
  }
};

// Elements of a panel: of queries or results, and of scores.
int64_t channel_plane(const AttentionArgs& args) {
  return (args.channels + lanes - 1) / lanes * lanes * panel;
}
int64_t score_plane(const AttentionArgs& args) {
  return smaller(block_keys, args.rows) * panel;
}

void attend(const AttentionArgs& args, float* memory, int64_t b, int64_t h, int64_t from) {
  const int64_t channels = args.channels, plane = channel_plane(args), scores_plane = score_plane(args);
  const int64_t rows = smaller(args.panels * panel, args.rows - from), panels = (rows + panel - 1) / panel;
  float* const queries = memory;
  float* const results = queries + args.panels * plane;
  float* const scores = results + args.panels * plane;
  const float *k = args.k + args.k_rows.at(b, h), *v = args.v + args.v_rows.at(b, h);
  const float* q = args.q + args.q_rows.at(b, h) + from * args.q_rows.row;
  float* out = args.out + args.out_rows.at(b, h) + from * args.out_rows.row;
  for (int64_t p = 0; p < panels; ++p)
    read_panel(q + p * panel * args.q_rows.row, args.q_rows.row, smaller(panel, rows - p * panel), channels,
               queries + p * plane);

  Softmax softmax[attention_most_panels];
  for (int64_t key = 0; key < args.rows; key += block_keys) {
    const int64_t n = smaller(block_keys, args.rows - key), k_row = args.k_rows.row, v_row = args.v_rows.row;
    Panels{panels, plane, scores_plane}.product(k + key * k_row, k_row, 1, n, queries, channels, scores, false);
    for (int64_t p = 0; p < panels; ++p) {
      vf32 factor[2];
      softmax[p].add(scores + p * scores_plane, n, args.scale, key == 0, factor);
      if (key == 0) continue;
      for (int64_t i = 0; i < channels * panel; i += panel)
        for (int half = 0; half < 2; ++half) {
          float* to = results + p * plane + i + half * lanes;
          store(to, load(to) * factor[half]);
        }
    }
    Panels{panels, scores_plane, plane}.product(v + key * v_row, 1, v_row, channels, scores, n, results, key > 0);
  }
  for (int64_t p = 0; p < panels; ++p) {
    const vf32 one = splat(1.0f), share[2] = {one / softmax[p].total[0], one / softmax[p].total[1]};
    write_panel(results + p * plane, share, smaller(panel, rows - p * panel), channels,
                out + p * panel * args.out_rows.row, args.out_rows.row);
  }
}

}  // namespace

int64_t attention_panel() {
  return panel;
}

int64_t attention_scratch(const AttentionArgs& args) {
  return args.panels * (2 * channel_plane(args) + score_plane(args));
}

void attention(const AttentionArgs& args, float* memory, int64_t begin, int64_t end) {
  const int64_t rows = args.panels * panel, blocks = (args.rows + rows - 1) / rows;
  for (int64_t t = begin; t < end; ++t)
    attend(args, memory, t / blocks / args.heads, t / blocks % args.heads, t % blocks * rows);
}

}  // namespace fastscore::FASTSCORE_ISA

// Statistics per channel of blocks of pixels, which become statistics of groups in double: so groups of any size may
// straddle vectors. A block has three rows in `partial`: its center, which is the mean of its first few pixels, and the
// sums of x - center and of (x - center)^2. A mean of k among n numbers costs the variance at most a factor n / k of
// accuracy, where outliers are among them.
#include "cpu/simd/group_affine.h"

#include "cpu/simd/tails.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;

enum Row { center, first, second, partial_rows };
constexpr int bunch = 8;  // pixels that are summed in registers, and then added to the sums of the block

float* partial(const GroupAffineArgs& args, int64_t block, Row row) {
  return args.partial + (block * partial_rows + row) * args.partial_stride;
}

// The center: the mean of `count` pixels.
void center_on(const float* x, int64_t stride, int64_t channels, int64_t count, float* to) {
  const vf32 share = splat(1.0f / static_cast<float>(count));
  each_vector<float>(channels, [&](int64_t c, auto part) {
    vf32 total = load(x + c, part);
    for (int64_t p = 1; p < count; ++p) total += load(x + p * stride + c, part);
    store(to + c, total * share, part);
  });
}

template <int count>
void add_pixels(const float* x, int64_t stride, int64_t channels, float* sums) {
  each_vector<float>(channels, [&](int64_t c, auto part) {
    const vf32 middle = load(sums + center * channels + c, part);
    vf32 total = load(sums + first * channels + c, part), squares = load(sums + second * channels + c, part);
    vf32 d = load(x + c, part) - middle, t = d, s = d * d;
    for (int p = 1; p < count; ++p) {
      d = load(x + p * stride + c, part) - middle;
      t += d;
      s = fma(d, d, s);
    }
    store(sums + first * channels + c, total + t, part);
    store(sums + second * channels + c, squares + s, part);
  });
}

void sum_block(const GroupAffineArgs& args, int64_t block) {
  const int64_t from = block % args.blocks * args.rows, left = args.pixels - from;
  const int64_t rows = left < args.rows ? left : args.rows, channels = args.channels, stride = args.pixel_stride;
  const float* x = args.x + (block / args.blocks * args.pixels + from) * stride;
  float* sums = partial(args, block, center);
  center_on(x, stride, channels, rows < bunch ? rows : bunch, sums);
  for (int64_t c = channels; c < partial_rows * channels; ++c) sums[c] = 0;
  int64_t r = 0;
  for (; r + bunch <= rows; r += bunch) add_pixels<bunch>(x + r * stride, stride, channels, sums);
  for (; r < rows; ++r) add_pixels<1>(x + r * stride, stride, channels, sums);
}

// f(block, pixels of it), in order.
template <class F>
FASTSCORE_INLINE void each_block(const GroupAffineArgs& args, int64_t sample, F&& f) {
  for (int64_t b = 0; b < args.blocks; ++b) {
    const int64_t left = args.pixels - b * args.rows;
    f(sample * args.blocks + b, static_cast<double>(left < args.rows ? left : args.rows));
  }
}

void finish_sample(const GroupAffineArgs& args, int64_t sample) {
  const int64_t channels = args.channels, d = channels / args.groups;
  const double count = static_cast<double>(d * args.pixels);
  double* __restrict means = args.totals + sample * 2 * channels, * __restrict squares = means + channels;
  for (int64_t c = 0; c < channels; ++c) means[c] = squares[c] = 0;

  each_block(args, sample, [&](int64_t block, double n) {
    const float *middle = partial(args, block, center), *sum = partial(args, block, first);
    for (int64_t c = 0; c < channels; ++c) means[c] += n * middle[c] + sum[c];
  });
  for (int64_t g = 0; g < channels; g += d) {
    double mean = 0;
    for (int64_t c = g; c < g + d; ++c) mean += means[c];
    for (int64_t c = g; c < g + d; ++c) means[c] = mean / count;
  }
  each_block(args, sample, [&](int64_t block, double n) {
    const float *middle = partial(args, block, center), *sum = partial(args, block, first);
    const float* square = partial(args, block, second);
    for (int64_t c = 0; c < channels; ++c) {
      const double off = middle[c] - means[c];
      squares[c] += square[c] + off * (2.0 * sum[c] + n * off);
    }
  });

  const auto number = [](const float* from, int64_t c, double otherwise) {
    return from == nullptr ? otherwise : static_cast<double>(from[c]);
  };
  const auto row = [&](GroupAffineArgs::Rows rows) { return rows.data ? rows.data + sample * rows.stride : nullptr; };
  const float *scale = row(args.scale), *shift = row(args.shift);
  float *gain = args.gain + sample * args.gain_stride, *offset = args.offset + sample * args.offset_stride;
  for (int64_t g = 0; g < channels; g += d) {
    double total = 0;
    for (int64_t c = g; c < g + d; ++c) total += squares[c];
    const double rstd = 1 / __builtin_sqrt(total / count + args.eps);
    for (int64_t c = g; c < g + d; ++c) {
      const double a = 1 + number(scale, c, 0);
      gain[c] = static_cast<float>(rstd * number(args.weight, c, 1) * a);
      // With the gain as it was rounded, so that the mean goes where it should.
      offset[c] = static_cast<float>(number(args.bias, c, 0) * a + number(shift, c, 0) - means[c] * gain[c]);
    }
  }
}

}  // namespace

void group_affine_sum(const GroupAffineArgs& args, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) sum_block(args, block);
}

void group_affine_finish(const GroupAffineArgs& args, int64_t begin, int64_t end) {
  for (int64_t sample = begin; sample < end; ++sample) finish_sample(args, sample);
}

}  // namespace fastscore::FASTSCORE_ISA

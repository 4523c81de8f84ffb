#include "resample.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/dispatch.h"
#include "cpu/simd/resample.h"

namespace fastscore {
namespace {

LaunchCounter launches("resample");

// What the buffers of a tile should not exceed, so that they stay in the first-level cache; the fewest columns and the
// most rows of a tile; multiplications that one thread should do before a second is worth waking.
constexpr std::int64_t buffer_bytes = 8192, fewest_columns = 16, most_rows = 8, grain_products = 131072;
// Planes that are computed side by side, as channels: no wider than this, with at most so many pixels, x and outputs.
constexpr std::int64_t narrow = 15, most_pixels = 2048;

// w = sum of columns x rows, exactly: rows of w that are multiples of one another share a term. The filters of NCSN++
// are one term; none has more than rows.
template <class Real>
struct Terms {
  Real columns[max_taps][max_taps] = {}, rows[max_taps][max_taps] = {};
  int count = 0;

  explicit Terms(const ResampleArgs& args) {
    const int length = args.length, size = length * length;
    const auto* taps = static_cast<const Real*>(args.taps);
    Real w[max_taps][max_taps], peak[max_taps] = {};
    int order[max_taps] = {};
    for (int a = 0; a < length; ++a) {
      for (int b = 0; b < length; ++b) w[a][b] = taps[args.flip ? a * length + b : size - 1 - (a * length + b)];
      peak[a] = *std::max_element(w[a], w[a] + length, [](Real x, Real y) { return std::abs(x) < std::abs(y); });
      order[a] = a;
    }
    // From the smallest row up: 3/1 is exact where 1/3 is not.
    std::stable_sort(order, order + length, [&](int a, int b) { return std::abs(peak[a]) < std::abs(peak[b]); });
    bool done[max_taps] = {};
    for (int k = 0; k < length; ++k)
      if (const int p = order[k]; !done[p] && peak[p] != 0) add(w, peak, p, length, done);
  }

 private:
  // The term of row p and its multiples.
  void add(const Real (&w)[max_taps][max_taps], const Real (&peak)[max_taps], int p, int length, bool* done) {
    Real(&column)[max_taps] = columns[count], sum = 0;
    for (int a = 0; a < length; ++a) {
      const Real ratio = a == p ? 1 : peak[a] / peak[p];
      bool multiple = !done[a];
      for (int b = 0; a != p && b < length; ++b) multiple = multiple && std::fma(ratio, w[p][b], -w[a][b]) == 0;
      if (!multiple) continue;
      column[a] = ratio;
      done[a] = true;
      sum += std::abs(ratio);
    }
    // A power of two moves to the row, so that no sum down a column overflows where x does not.
    int exponent;
    std::frexp(sum, &exponent);
    for (int a = 0; a < length; ++a) column[a] = std::ldexp(column[a], -exponent);
    for (int b = 0; b < length; ++b) rows[count][b] = std::ldexp(w[p][b], exponent);
    ++count;
  }
};

ResampleTiles cut(const ResampleArgs& args, std::int64_t together, std::int64_t fit) {
  ResampleTiles tiles;
  tiles.width = std::max(fit / together, fewest_columns) * args.up / args.down;
  tiles.width = std::min(tiles.width, args.out_width + 1) / 2 * 2;
  tiles.per_row = (args.out_width + tiles.width - 1) / tiles.width;
  const std::int64_t columns = (args.down * tiles.width + args.length) / args.up + 4;
  tiles.stride = (columns * together + 64) / 32 * 32;  // a vector more may be written at the end of each half
  tiles.rows = std::clamp<std::int64_t>(fit / tiles.stride, 1, std::min(args.out_height, most_rows));
  tiles.per_column = (args.out_height + tiles.rows - 1) / tiles.rows;
  return tiles;
}

template <class Real>
void run(const ResampleArgs& args) {
  const Terms<Real> terms(args);
  const ResampleTerms pointers{terms.columns, terms.rows, terms.count};
  const std::int64_t real = sizeof(Real), count = std::max(terms.count, 1), fit = buffer_bytes / (real * count);
  const std::int64_t pixels = args.height * args.width + args.out_height * args.out_width;
  const bool planes = !args.channels_last && std::min(args.width, args.out_width) <= narrow && pixels <= most_pixels;
  const std::int64_t together = planes ? planes_together : args.channels_last ? args.channels : 1;
  const ResampleTiles tiles = cut(args, together, fit);

  const std::int64_t buffers = (count * tiles.rows + 2) * tiles.stride;
  const std::int64_t bytes = real * (buffers + (planes ? pixels * together : 0));
  const at::Tensor scratch = at::empty({at::get_num_threads(), (bytes + 63) / 64 * 64}, at::kByte);
  const auto mine = [&] { return scratch.mutable_data_ptr<std::uint8_t>() + at::get_thread_num() * scratch.stride(0); };
  const std::int64_t products = tiles.rows * tiles.width * together * args.length * count * 2, each = grain_products;
  const std::int64_t in_plane = tiles.per_column * tiles.per_row;
  if (planes) {
    const auto kernel = FASTSCORE_KERNEL(resample_planes);
    const std::int64_t groups = (args.channels + together - 1) / together;
    at::parallel_for(0, args.batch * groups, std::max<std::int64_t>(each / (products * in_plane), 1),
                     [&](std::int64_t begin, std::int64_t end) {
                       kernel(args, pointers, tiles, mine(), mine() + real * buffers, begin, end);
                     });
  } else {
    const auto kernel = FASTSCORE_KERNEL(resample);
    const std::int64_t columns = args.batch * (args.channels_last ? 1 : args.channels) * in_plane;
    at::parallel_for(0, columns, std::max<std::int64_t>(each / products, 1),
                     [&](std::int64_t begin, std::int64_t end) { kernel(args, pointers, tiles, mine(), begin, end); });
  }
  launches.cpu();
}

}  // namespace

void resample_launch_cpu(const ResampleArgs& args, const at::Tensor&) {
  args.dtype == Dtype::f64 ? run<double>(args) : run<float>(args);
}

}  // namespace fastscore

TORCH_LIBRARY_IMPL(fastscore, CPU, m) {
  using namespace fastscore;
  m.impl("resample", [](const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                        std::int64_t before, at::IntArrayRef size,
                        bool flip) { return resample(x, taps, up, down, before, size, flip, resample_launch_cpu); });
  m.impl("resample_into", [](const at::Tensor& x, const at::Tensor& taps, std::int64_t up, std::int64_t down,
                             std::int64_t before, bool flip, const at::Tensor& out) {
    resample_into(x, taps, up, down, before, flip, out, resample_launch_cpu);
  });
}

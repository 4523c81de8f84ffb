// A tile takes two passes: down the columns of x into a buffer for each term, which stays in the first-level cache,
// then along the rows of the buffers. Both are weighted sums of a few runs of memory, whatever the memory format.
// Buffers have zeros where x ends; of contiguous images that are to be halved, even columns lie in front of odd ones.
#include "cpu/simd/resample.h"

#include "cpu/simd/weighted_runs.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;
static_assert(max_taps * max_taps <= most_runs);

template <class T>
class Resampling {
  using Real = typename Acc<T>::scalar;

 public:
  Resampling(const ResampleArgs& args, ResampleTerms terms, ResampleTiles tiles, void* scratch)
      : args_(args),
        terms_(terms),
        tiles_(tiles),
        buffer_(static_cast<Real*>(scratch)),
        together_(args.channels_last ? args.channels : 1),
        few_(args.channels_last && args.channels < few_channels),
        apart_(args.down == 2 && (few_ || !args.channels_last)),
        shift_(args.up - 1) {}

  void run(int64_t begin, int64_t end) {
    const int64_t planes = args_.channels / together_;
    int64_t chunk = -1;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t column = t / tiles_.per_column, plane = column / tiles_.per_row;
      if (column % tiles_.per_row != chunk) begin_columns(chunk = column % tiles_.per_row);
      const int64_t first = t % tiles_.per_column * tiles_.rows;
      const int64_t rows = smaller(tiles_.rows, args_.out_height - first);
      const int64_t sample = plane / planes, channel = plane % planes;
      const T* x = static_cast<const T*>(args_.x) + sample * args_.x_stride + channel * args_.height * args_.width;
      T* out = static_cast<T*>(args_.out) + sample * args_.out_stride +
               ((channel * args_.out_height + first) * args_.out_width + first_) * together_;
      for (int64_t r = 0; r < rows; ++r) read_columns(x, first + r, r * tiles_.stride);
      write_rows(out, rows);
    }
  }

 private:
  // Where in its buffer a column of x lies.
  Real* at(int term, int64_t column) const {
    const int64_t place = column - low_, half = place % 2 != 0 ? tiles_.stride / 2 : 0;
    return buffer_ + term * tiles_.rows * tiles_.stride + (apart_ ? place / 2 * together_ + half : place * together_);
  }

  // Row 0 or 1 behind the buffers.
  template <class To>
  To* spare(int row) const {
    return reinterpret_cast<To*>(buffer_ + (terms_.count * tiles_.rows + row) * tiles_.stride);
  }

  // What is the same for all tiles of these columns: which of x they need, zeros, and the sums along rows.
  void begin_columns(int64_t chunk) {
    first_ = chunk * tiles_.width;
    count_ = smaller(tiles_.width, args_.out_width - first_);
    low_ = args_.down * first_ - args_.before;
    int64_t high = low_ + args_.down * (count_ - 1) + args_.length;
    if (args_.up == 2) low_ >>= 1, high = (high + 1) >> 1;
    if (apart_) low_ -= low_ & 1;
    from_ = smaller(larger(low_, 0), high);
    to_ = larger(smaller(high, args_.width), from_);
    for (int t = 0; t < terms_.count; ++t)
      for (int64_t column = low_; column < high; ++column)
        if (column < from_ || column >= to_)
          for (int64_t r = 0; r < tiles_.rows; ++r)
            for (int64_t c = 0; c < together_; ++c) at(t, column)[r * tiles_.stride + c] = 0;

    const auto* weights = static_cast<const Real*>(terms_.rows);
    for (int q = 0; q < args_.up; ++q) {
      sums_[q].count = 0;
      for (int t = 0; t < terms_.count; ++t)
        for (int b = 0; b < args_.length; ++b) {
          const int64_t column = args_.down * first_ + q + b - args_.before;
          if ((column & shift_) != 0) continue;
          sums_[q].add(at(t, column >> shift_), weights[t * max_taps + b]);
        }
    }
  }

  // What row i of outputs needs of x, to the row of the buffers that begins at `at_row`.
  void read_columns(const T* x, int64_t i, int64_t at_row) {
    const auto* weights = static_cast<const Real*>(terms_.columns);
    for (int t = 0; t < terms_.count; ++t) {
      Runs<T> runs;
      for (int a = 0; a < args_.length; ++a) {
        const int64_t row = args_.down * i + a - args_.before;
        if (row < 0 || (row & shift_) != 0 || row >> shift_ >= args_.height) continue;
        const Real weight = weights[t * max_taps + a];
        if (weight != 0) runs.add(x + ((row >> shift_) * args_.width + from_) * together_, weight);
      }
      Real* to = at(t, from_) + at_row;
      if (apart_ && !few_) {
        write_apart(runs, to_ - from_, to, at(t, from_ + 1) + at_row);
        continue;
      }
      Real* run = apart_ ? spare<Real>(0) : to;
      with_sum(runs, [&](const auto& sum)
                         __attribute__((always_inline)) { write_run(sum, 0, (to_ - from_) * together_, run); });
      if (apart_) copy_apart(run, to, at(t, from_ + 1) + at_row);
    }
  }

  void copy_apart(const Real* from, Real* even, Real* odd) const {
    for (int64_t column = from_; column < to_; ++column) {
      Real*& to = (column - from_) % 2 == 0 ? even : odd;
      for (int64_t c = 0; c < together_; ++c) *to++ = *from++;
    }
  }

  // The even outputs of a row and the odd ones, as runs, to `to`.
  template <class S>
  void copy_together(const S& even, const S& odd, int64_t from, T* to) const {
    write_run(even, from, (count_ + 1) / 2 * together_, spare<T>(0));
    write_run(odd, from, count_ / 2 * together_, spare<T>(1));
    const T* runs[2] = {spare<T>(0), spare<T>(1)};
    for (int64_t j = 0; j < count_; ++j)
      for (int64_t c = 0; c < together_; ++c) *to++ = *runs[j % 2]++;
  }

  void write_rows(T* out, int64_t rows) const {
    const int64_t line = args_.out_width * together_;
    const auto each_row = [&](auto&& write) __attribute__((always_inline)) {
      for (int64_t r = 0; r < rows; ++r) write(r * tiles_.stride, out + r * line);
    };
    if (args_.up == 2) {
      with_sums(sums_[0], sums_[1], [&](const auto& even, const auto& odd) __attribute__((always_inline)) {
        if (!args_.channels_last)
          return each_row([&](int64_t from, T* to) { write_together(even, odd, from, count_, to); });
        if (few_) return each_row([&](int64_t from, T* to) { copy_together(even, odd, from, to); });
        each_row([&](int64_t from, T* to) {
          for (int64_t j = 0; j < count_; j += 2, from += together_, to += 2 * together_) {
            write_run(even, from, together_, to);
            if (j + 1 < count_) write_run(odd, from, together_, to + together_);
          }
        });
      });
      return;
    }
    with_sum(sums_[0], [&](const auto& sum) __attribute__((always_inline)) {
      if (args_.down == 1 || apart_)  // outputs that lie side by side need inputs that do
        return each_row([&](int64_t from, T* to) { write_run(sum, from, count_ * together_, to); });
      each_row([&](int64_t from, T* to) {
        for (int64_t j = 0; j < count_; ++j, from += 2 * together_, to += together_)
          write_run(sum, from, together_, to);
      });
    });
  }

  const ResampleArgs& args_;
  const ResampleTerms terms_;
  const ResampleTiles tiles_;
  Real* const buffer_;
  const int64_t together_;  // channels that lie side by side
  const bool few_;          // that are too few for vectors
  const bool apart_;        // even columns and odd ones
  const int shift_;         // log2(up), which also tells the rows and columns that are not zeros

  int64_t first_ = 0, count_ = 0;        // the columns of `out`
  int64_t low_ = 0, from_ = 0, to_ = 0;  // of x: where the buffers begin, and what there is of them
  Runs<Real> sums_[2];
};

template <class T>
void run_planes(const ResampleArgs& args, ResampleTerms terms, ResampleTiles tiles, void* scratch, T* copies,
                int64_t begin, int64_t end) {
  constexpr int64_t together = planes_together;
  const int64_t pixels = args.height * args.width, out_pixels = args.out_height * args.out_width;
  const int64_t groups = (args.channels + together - 1) / together;
  T* const out_copies = copies + pixels * together;
  ResampleArgs copied = args;
  copied.x = copies;
  copied.out = out_copies;
  copied.batch = 1;
  copied.channels = together;
  copied.channels_last = true;
  Resampling<T> resampling(copied, terms, tiles, scratch);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t sample = t / groups, first = t % groups * together;
    const int64_t n = smaller(together, args.channels - first);  // what lies behind them is computed and not used
    const T* x = static_cast<const T*>(args.x) + sample * args.x_stride + first * pixels;
    T* out = static_cast<T*>(args.out) + sample * args.out_stride + first * out_pixels;
    for (int64_t c = 0; c < n; ++c)
      for (int64_t i = 0; i < pixels; ++i) copies[i * together + c] = *x++;
    resampling.run(0, tiles.per_column * tiles.per_row);
    for (int64_t c = 0; c < n; ++c)
      for (int64_t i = 0; i < out_pixels; ++i) *out++ = out_copies[i * together + c];
  }
}

}  // namespace

void resample(const ResampleArgs& args, ResampleTerms terms, ResampleTiles tiles, void* scratch, int64_t begin,
              int64_t end) {
  for_dtype(args.dtype, [&](auto like) { Resampling<decltype(like)>(args, terms, tiles, scratch).run(begin, end); });
}

void resample_planes(const ResampleArgs& args, ResampleTerms terms, ResampleTiles tiles, void* scratch, void* copies,
                     int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) {
    run_planes(args, terms, tiles, scratch, static_cast<decltype(like)*>(copies), begin, end);
  });
}

}  // namespace fastscore::FASTSCORE_ISA

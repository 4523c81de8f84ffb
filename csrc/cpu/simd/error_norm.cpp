#include "cpu/simd/error_norm.h"

#include "cpu/simd/tails.h"
#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// sums[i] += value[i]^2 in double.
FASTSCORE_INLINE void add_squares(double* sums, vf64 value) {
  store(sums, fma(value, value, load(sums)));
}
FASTSCORE_INLINE void add_squares(double* sums, vf32 value) {
  using Half = float __attribute__((vector_size(vector_bytes / 2)));
  Half half[2];
  __builtin_memcpy(half, &value, sizeof value);
  add_squares(sums, __builtin_convertvector(half[0], vf64));
  add_squares(sums + lanes64, __builtin_convertvector(half[1], vf64));
}

// Sum of n = 2^k numbers `stride` apart in a fixed order (pairwise, halves first).
template <int n>
FASTSCORE_INLINE double sum_of(const double* from, std::int64_t stride) {
  double part[n];
  for (int i = 0; i < n; ++i) part[i] = from[i * stride];
  for (int width = n / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}

// Adds the squares of n consecutive elements to `sums`, of `channels` vectors: element i to sums[i % their lanes].
// Where `channels` lie side by side, a channel c of a pixel p is at p * channels + c, so it joins
// sums[p % lanes * channels + c]: the same partial sums in the same order as of one channel after another.
template <class T, int terms>
void accumulate(const ErrorNormArgs& args, const T* const* term, const T* u, const T* v,
                const typename Acc<T>::scalar* coefficient, std::int64_t n, std::int64_t channels, double* sums) {
  using Real = typename Acc<T>::scalar;
  using Vec = typename Acc<T>::vec;
  const T* from[terms];
  Vec weight[terms];
  for (int k = 0; k < terms; ++k) {
    from[k] = term[k];
    weight[k] = splat(coefficient[k]);
  }
  const Vec atol = splat(static_cast<Real>(args.atol)), rtol = splat(static_cast<Real>(args.rtol)), zero = {};
  const bool larger = args.larger;
  std::int64_t vector = 0;
  each_vector<T>(n, [&](std::int64_t i, auto part) {
    Vec e = weight[0] * load(from[0] + i, part);
    for (int k = 1; k < terms; ++k) e = fma(weight[k], load(from[k] + i, part), e);
    const Vec ui = load(u + i, part), vi = load(v + i, part);
    const Vec size = rtol * max(max(ui, -ui), max(vi, -vi));
    const Vec scale = larger ? max(atol, size) : atol + size;
    // No error is none at any scale. 0 * y is NaN where y is not finite: max may lose a NaN of u, and e / inf is 0.
    const Vec ratio = (e == zero ? zero : e / scale) + fma(zero, scale, zero * ui);
    add_squares(sums + vector * Acc<T>::lanes, ratio);
    vector = vector + 1 == channels ? 0 : vector + 1;
  });
}

template <class T>
void run(const ErrorNormArgs& args, ErrorNormTiles tiles, double* sums, std::int64_t begin, std::int64_t end) {
  constexpr int lanes = Acc<T>::lanes;
  constexpr decltype(&accumulate<T, 1>) accumulates[] = {accumulate<T, 1>, accumulate<T, 2>, accumulate<T, 3>,
                                                         accumulate<T, 4>, accumulate<T, 5>, accumulate<T, 6>,
                                                         accumulate<T, 7>, accumulate<T, 8>, accumulate<T, 9>};
  static_assert(sizeof accumulates / sizeof *accumulates == max_error_terms);
  const auto squares = accumulates[args.term_count - 1];
  const std::int64_t together = args.channels_last ? args.channels : 1;  // channels that lie side by side
  double partial[error_norm_channels * lanes];
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t b = tile / tiles.per_sample, pixel = tile % tiles.per_sample * tiles.pixels;
    const std::int64_t pixels = args.pixels - pixel < tiles.pixels ? args.pixels - pixel : tiles.pixels;
    const auto* row = static_cast<const typename Acc<T>::scalar*>(args.coefficients) + b * args.coefficient_stride;
    double total = 0;
    for (std::int64_t channel = 0; channel < args.channels; channel += together) {
      const std::int64_t offset = channel * args.pixels + pixel * together;
      const auto start = [&](const ErrorNormArgs::Operand& operand) {
        return static_cast<const T*>(operand.data) + b * operand.stride + offset;
      };
      const T* term[max_error_terms];
      for (int k = 0; k < args.term_count; ++k) term[k] = start(args.terms[k]);
      for (std::int64_t i = 0; i < together * lanes; ++i) partial[i] = 0;
      squares(args, term, start(args.u), start(args.v), row, pixels * together, together, partial);
      for (std::int64_t c = 0; c < together; ++c) total += sum_of<lanes>(partial + c, together);
    }
    sums[tile] = total;
  }
}

}  // namespace

void error_norm(const ErrorNormArgs& args, ErrorNormTiles tiles, double* sums, std::int64_t begin, std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { run<decltype(like)>(args, tiles, sums, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

#include "cpu/simd/linear_step.h"

#include "cpu/simd/tile.h"
#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// out[i] = a * x[i] + sum_k b_k * term_k[i] + s * z[i]; z is null where no noise is drawn.
template <class T, int terms>
void update(T* out, const T* x, const T* const* term, const typename Acc<T>::scalar* b,
            const typename Acc<T>::scalar* z, typename Acc<T>::scalar a, typename Acc<T>::scalar s, std::int64_t n) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes;
  Vec weight[terms + 1];
  for (int k = 0; k < terms; ++k) weight[k] = splat(b[k]);
  const Vec wa = splat(a), ws = splat(s);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Vec value = wa * load(x + i);
    for (int k = 0; k < terms; ++k) value = fma(weight[k], load(term[k] + i), value);
    if (z != nullptr) value = fma(ws, load(z + i), value);
    store(out + i, value);
  }
  if (const std::int64_t rest = n - i; rest > 0) {
    Vec value = wa * load_n(x + i, rest);
    for (int k = 0; k < terms; ++k) value = fma(weight[k], load_n(term[k] + i, rest), value);
    if (z != nullptr) value = fma(ws, load_n(z + i, rest), value);
    store_n(out + i, value, rest);
  }
}

template <class T>
void run(const LinearStepArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  constexpr decltype(&update<T, 0>) updates[] = {update<T, 0>, update<T, 1>, update<T, 2>, update<T, 3>,
                                                 update<T, 4>, update<T, 5>, update<T, 6>, update<T, 7>};
  static_assert(sizeof updates / sizeof *updates == max_history + 2);  // the noise may be a term
  Real noise[step_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const Tile tile(args, tiles, t);
    const auto read = [&](const LinearStepArgs::Operand& operand) {
      return static_cast<const T*>(operand.data) + tile.sample * operand.stride + tile.offset;
    };
    const Real* coefficient = static_cast<const Real*>(args.coefficients) + tile.sample * args.coefficient_stride;
    const Real s = coefficient[args.coefficient_count - 1];
    // Noise of weight zero is not looked at, so that it may be anything.
    const int terms = args.term_count - (args.noise_given && s == 0);
    const bool drawn = args.samples != nullptr && s != 0;
    if (drawn) tile.draw(args, noise);
    const T* term[max_history + 1];
    for (int k = 0; k < terms; ++k) term[k] = read(args.terms[k]);
    updates[terms](static_cast<T*>(args.out) + tile.sample * args.out_stride + tile.offset, read(args.x), term,
                   coefficient + 1, drawn ? noise : nullptr, coefficient[0], s, tile.n);
  }
}

}  // namespace

void linear_step(const LinearStepArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { run<decltype(like)>(args, tiles, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

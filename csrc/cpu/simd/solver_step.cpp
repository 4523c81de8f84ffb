#include "cpu/simd/solver_step.h"

#include "cpu/simd/exp.h"
#include "cpu/simd/tails.h"
#include "cpu/simd/tile.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// Where the operands of one tile lie. `out` may be x: every element is read before it is written.
template <class T>
struct Operands {
  T *out, *m;  // m is null where it is not asked for
  const T *x, *h, *exponent;
  const T* history[solver_max_history];
};

// z is the noise, null where there is none; of type T where it is given, of Acc<T>::scalar where it is drawn.
template <int terms, class T, class Z>
void update(const Operands<T>& on, const Z* z, const typename Acc<T>::scalar* row, std::int64_t n) {
  using Vec = typename Acc<T>::vec;
  const auto c = row[2];
  const Vec p = splat(row[0]), q = splat(row[1]), a = splat(row[3]), b0 = splat(row[4]);
  const Vec s = splat(row[terms + 5]), e = splat(row[terms + 6]);
  Vec b[terms + 1];
  for (int k = 0; k < terms; ++k) b[k] = splat(row[k + 5]);
  each_vector<T>(n, [&](std::int64_t i, auto part) {
    const Vec x = load(on.x + i, part);
    const Vec m = clamp(fma(q, load(on.h + i, part), p * x), -c, c);
    Vec value = fma(b0, m, a * x);
    for (int k = 0; k < terms; ++k) value = fma(b[k], load(on.history[k] + i, part), value);
    if (z != nullptr) {
      const Vec w = on.exponent != nullptr ? s * exp(e * load(on.exponent + i, part)) : s;
      value = fma(w, load(z + i, part), value);
    }
    store(on.out + i, value, part);
    if (on.m != nullptr) store(on.m + i, m, part);
  });
}

template <class T, class Z>
void update(const Operands<T>& on, const Z* z, const typename Acc<T>::scalar* row, std::int64_t n, int terms) {
  static_assert(solver_max_history == 3);
  constexpr decltype(&update<0, T, Z>) updates[] = {update<0, T, Z>, update<1, T, Z>, update<2, T, Z>, update<3, T, Z>};
  updates[terms](on, z, row, n);
}

template <class T>
void run(const SolverStepArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  Real drawn[step_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const Tile tile(args, tiles, t);
    const auto read = [&](const SolverStepArgs::Operand& operand) -> const T* {
      if (operand.data == nullptr) return nullptr;
      return static_cast<const T*>(operand.data) + tile.sample * operand.stride + tile.offset;
    };
    const auto written = [&](const SolverStepArgs::Target& target) -> T* {
      if (target.data == nullptr) return nullptr;
      return static_cast<T*>(target.data) + tile.sample * target.stride + tile.offset;
    };
    Operands<T> on{written(args.out), written(args.m), read(args.x), read(args.h), read(args.exponent), {}};
    for (int k = 0; k < args.history_count; ++k) on.history[k] = read(args.history[k]);

    const Real* coefficient = static_cast<const Real*>(args.coefficients) + tile.sample * args.coefficient_stride;
    // Noise of weight zero is not looked at, so that it may be anything.
    const bool noisy = coefficient[args.history_count + 5] != 0;
    if (noisy && args.noise.data != nullptr) {
      update(on, read(args.noise), coefficient, tile.n, args.history_count);
      continue;
    }
    if (!noisy || args.samples == nullptr) {
      update<T, Real>(on, nullptr, coefficient, tile.n, args.history_count);
      continue;
    }
    tile.draw(args, drawn);
    update<T, Real>(on, drawn, coefficient, tile.n, args.history_count);
  }
}

}  // namespace

void solver_step(const SolverStepArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { run<decltype(like)>(args, tiles, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

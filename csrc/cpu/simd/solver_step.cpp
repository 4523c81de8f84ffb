#include "cpu/simd/solver_step.h"

#include "cpu/simd/exp.h"
#include "cpu/simd/normal.h"
#include "cpu/simd/tails.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

// Where the elements of one tile lie. `out` may be x: every element is read before it is written.
template <class T>
struct Tile {
  T *out, *m;  // m is null where it is not asked for
  const T *x, *h, *exponent;
  const T* history[solver_max_history];
};

// z is the noise, null where there is none; of type T where it is given, of Acc<T>::scalar where it is drawn.
template <int terms, class T, class Z>
void update(const Tile<T>& tile, const Z* z, const typename Acc<T>::scalar* row, std::int64_t n) {
  using Vec = typename Acc<T>::vec;
  const auto c = row[2];
  const Vec p = splat(row[0]), q = splat(row[1]), a = splat(row[3]), b0 = splat(row[4]);
  const Vec s = splat(row[terms + 5]), e = splat(row[terms + 6]);
  Vec b[terms + 1];
  for (int k = 0; k < terms; ++k) b[k] = splat(row[k + 5]);
  each_vector<T>(n, [&](std::int64_t i, auto part) {
    const Vec x = load(tile.x + i, part);
    const Vec m = clamp(fma(q, load(tile.h + i, part), p * x), -c, c);
    Vec value = fma(b0, m, a * x);
    for (int k = 0; k < terms; ++k) value = fma(b[k], load(tile.history[k] + i, part), value);
    if (z != nullptr) {
      const Vec w = tile.exponent != nullptr ? s * exp(e * load(tile.exponent + i, part)) : s;
      value = fma(w, load(z + i, part), value);
    }
    store(tile.out + i, value, part);
    if (tile.m != nullptr) store(tile.m + i, m, part);
  });
}

template <class T, class Z>
void update(const Tile<T>& tile, const Z* z, const typename Acc<T>::scalar* row, std::int64_t n, int terms) {
  static_assert(solver_max_history == 3);
  constexpr decltype(&update<0, T, Z>) updates[] = {update<0, T, Z>, update<1, T, Z>, update<2, T, Z>, update<3, T, Z>};
  updates[terms](tile, z, row, n);
}

template <class T>
void run(const SolverStepArgs& args, SolverStepTiles tiles, std::int64_t begin, std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  Real drawn[solver_step_tile], row[solver_step_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t sample = t / tiles.per_sample, pixel = t % tiles.per_sample * tiles.pixels;
    const std::int64_t pixels = args.pixels - pixel < tiles.pixels ? args.pixels - pixel : tiles.pixels;
    const std::int64_t offset = pixel * args.channels, n = pixels * args.channels;
    const auto read = [&](const SolverStepArgs::Operand& operand) -> const T* {
      if (operand.data == nullptr) return nullptr;
      return static_cast<const T*>(operand.data) + sample * operand.stride + offset;
    };
    const auto written = [&](const SolverStepArgs::Target& target) -> T* {
      if (target.data == nullptr) return nullptr;
      return static_cast<T*>(target.data) + sample * target.stride + offset;
    };
    Tile<T> tile{written(args.out), written(args.m), read(args.x), read(args.h), read(args.exponent), {}};
    for (int k = 0; k < args.history_count; ++k) tile.history[k] = read(args.history[k]);

    const Real* coefficient = static_cast<const Real*>(args.coefficients) + sample * args.coefficient_stride;
    // Noise of weight zero is not looked at, so that it may be anything.
    const bool noisy = coefficient[args.history_count + 5] != 0;
    if (noisy && args.noise.data != nullptr) {
      update(tile, read(args.noise), coefficient, n, args.history_count);
      continue;
    }
    if (!noisy || args.samples == nullptr) {
      update<T, Real>(tile, nullptr, coefficient, n, args.history_count);
      continue;
    }
    const PhiloxStream stream(args.rng[0], static_cast<std::uint32_t>(args.rng[1]), args.samples[sample]);
    if (args.channels == 1) {
      stream.fill_normals(pixel, n, drawn);
    } else {
      for (std::int64_t c = 0; c < args.channels; ++c) {
        stream.fill_normals(c * args.pixels + pixel, pixels, row);
        for (std::int64_t i = 0; i < pixels; ++i) drawn[i * args.channels + c] = row[i];
      }
    }
    update<T, Real>(tile, drawn, coefficient, n, args.history_count);
  }
}

}  // namespace

void solver_step(const SolverStepArgs& args, SolverStepTiles tiles, std::int64_t begin, std::int64_t end) {
  switch (args.dtype) {
    case Dtype::f32:
      return run<float>(args, tiles, begin, end);
    case Dtype::f64:
      return run<double>(args, tiles, begin, end);
    case Dtype::bf16:
      return run<bf16>(args, tiles, begin, end);
    case Dtype::f16:
      return run<f16>(args, tiles, begin, end);
  }
}

}  // namespace fastscore::FASTSCORE_ISA

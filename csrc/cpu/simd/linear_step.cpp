#include "cpu/simd/linear_step.h"

#include "cpu/simd/normal.h"
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
void run(const LinearStepArgs& args, LinearStepTiles tiles, std::int64_t begin, std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  constexpr decltype(&update<T, 0>) updates[] = {update<T, 0>, update<T, 1>, update<T, 2>, update<T, 3>,
                                                 update<T, 4>, update<T, 5>, update<T, 6>, update<T, 7>};
  static_assert(sizeof updates / sizeof *updates == max_history + 2);  // the noise may be a term
  Real noise[linear_step_tile], row[linear_step_tile];
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t sample = tile / tiles.per_sample;
    const std::int64_t pixel = tile % tiles.per_sample * tiles.pixels;
    const std::int64_t pixels = args.pixels - pixel < tiles.pixels ? args.pixels - pixel : tiles.pixels;
    const std::int64_t offset = pixel * args.channels, n = pixels * args.channels;

    const Real* coefficient = static_cast<const Real*>(args.coefficients) + sample * args.coefficient_stride;
    const Real s = coefficient[args.coefficient_count - 1];
    // Noise of weight zero is not looked at, so that it may be anything.
    const int terms = args.term_count - (args.noise_given && s == 0);
    const bool drawn = args.samples != nullptr && s != 0;
    if (drawn) {
      const PhiloxStream stream(args.rng[0], static_cast<std::uint32_t>(args.rng[1]), args.samples[sample]);
      if (args.channels == 1) {
        stream.fill_normals(pixel, n, noise);
      } else {
        for (std::int64_t c = 0; c < args.channels; ++c) {
          stream.fill_normals(c * args.pixels + pixel, pixels, row);
          for (std::int64_t p = 0; p < pixels; ++p) noise[p * args.channels + c] = row[p];
        }
      }
    }
    const T* term[max_history + 1];
    for (int k = 0; k < terms; ++k)
      term[k] = static_cast<const T*>(args.terms[k].data) + sample * args.terms[k].stride + offset;
    updates[terms](static_cast<T*>(args.out) + sample * args.out_stride + offset,
                   static_cast<const T*>(args.x.data) + sample * args.x.stride + offset, term, coefficient + 1,
                   drawn ? noise : nullptr, coefficient[0], s, n);
  }
}

}  // namespace

void linear_step(const LinearStepArgs& args, LinearStepTiles tiles, std::int64_t begin, std::int64_t end) {
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

#include "cpu/simd/masked_replace.h"

#include "cpu/simd/tile.h"
#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

bool any(const std::uint8_t* mask, std::int64_t n) {
  std::uint8_t found = 0;
  for (std::int64_t i = 0; i < n; ++i) found |= mask[i];
  return found != 0;
}

// out[i] = a * known[i] + s * z[i]; Noise is T, or what T is computed in, and z is null where there is none.
template <class T, class Noise>
void noised(T* out, const T* known, const Noise* z, typename Acc<T>::scalar a, typename Acc<T>::scalar s,
            std::int64_t n) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes;
  const Vec wa = splat(a), ws = splat(s);
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Vec value = wa * load(known + i);
    if (z != nullptr) value = fma(ws, load(z + i), value);
    store(out + i, value);
  }
  if (const std::int64_t rest = n - i; rest > 0) {
    Vec value = wa * load_n(known + i, rest);
    if (z != nullptr) value = fma(ws, load_n(z + i, rest), value);
    store_n(out + i, value, rest);
  }
}

template <class T>
void run(const MaskedReplaceArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end) {
  using Real = typename Acc<T>::scalar;
  Real drawn[step_tile];
  T value[step_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const Tile tile(args, tiles, t);
    const auto read = [&]<class From>(const MaskedReplaceArgs::Operand& operand, From) {
      return static_cast<const From*>(operand.data) + tile.sample * operand.stride + tile.offset;
    };
    const std::uint8_t* mask = read(args.mask, std::uint8_t{});
    if (!any(mask, tile.n)) continue;  // noise is dear
    const Real* row = static_cast<const Real*>(args.coefficients) + tile.sample * args.coefficient_stride;
    const Real a = row[0], s = row[1];
    const T* known = read(args.known, T{});
    // Noise of weight zero is not looked at, so that it may be anything.
    if (args.noise.data != nullptr && s != 0) {
      noised(value, known, read(args.noise, T{}), a, s, tile.n);
    } else {
      const bool draws = args.samples != nullptr && s != 0;
      if (draws) tile.draw(args, drawn);
      noised(value, known, draws ? drawn : static_cast<const Real*>(nullptr), a, s, tile.n);
    }
    T* x = static_cast<T*>(args.x) + tile.sample * args.x_stride + tile.offset;
    for (std::int64_t i = 0; i < tile.n; ++i) x[i] = mask[i] != 0 ? value[i] : x[i];
  }
}

}  // namespace

void masked_replace(const MaskedReplaceArgs& args, StepTiles tiles, std::int64_t begin, std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { run<decltype(like)>(args, tiles, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

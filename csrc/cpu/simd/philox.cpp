#include "cpu/simd/philox.h"

#include "cpu/simd/normal.h"
#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

template <class T>
void store_all(T* out, const typename Acc<T>::scalar* from, std::int64_t n) {
  constexpr int lanes = Acc<T>::lanes;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(out + i, load(from + i));
  if (i < n) store_n(out + i, load_n(from + i, n - i), n - i);
}

template <class T>
void normal_tiles(const PhiloxArgs& args, std::int64_t begin, std::int64_t end) {
  typename Acc<T>::scalar noise[philox_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t row = t / philox_tiles(args), first = t % philox_tiles(args) * philox_tile;
    const std::int64_t n = args.size - first < philox_tile ? args.size - first : philox_tile;
    PhiloxStream(args.rng[0], args.rng[1], args.samples[row]).fill_normals(first, n, noise);
    store_all(static_cast<T*>(args.out) + row * args.size + first, noise, n);
  }
}

template <class T>
void rademacher_tiles(const PhiloxArgs& args, std::int64_t begin, std::int64_t end) {
  constexpr int run = PhiloxStream::run;   // words of one call
  constexpr int words = philox_tile / 32;  // of a tile
  std::uint32_t word[(words + run - 1) / run * run];
  typename Acc<T>::scalar signs[philox_tile];
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t row = t / philox_tiles(args), first = t % philox_tiles(args) * philox_tile;
    const std::int64_t n = args.size - first < philox_tile ? args.size - first : philox_tile;
    const PhiloxStream stream(args.rng[0], args.rng[1], args.samples[row]);
    for (int i = 0; i < words; i += run) stream.store_words(static_cast<std::uint32_t>(first / 128 + i / 4), word + i);
    for (std::int64_t i = 0; i < n; ++i) signs[i] = (word[i / 32] >> (i % 32) & 1) != 0 ? 1 : -1;
    store_all(static_cast<T*>(args.out) + row * args.size + first, signs, n);
  }
}

}  // namespace

void philox_normal(const PhiloxArgs& args, std::int64_t begin, std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { normal_tiles<decltype(like)>(args, begin, end); });
}

void philox_rademacher(const PhiloxArgs& args, std::int64_t begin, std::int64_t end) {
  for_dtype(args.dtype, [&](auto like) { rademacher_tiles<decltype(like)>(args, begin, end); });
}

void philox_words(std::int64_t seed, std::int64_t draw, std::int64_t sample, std::int64_t first_block,
                  std::int64_t count, std::int64_t* out) {
  const PhiloxStream stream(seed, draw, sample);
  std::uint32_t word[PhiloxStream::run];
  for (std::int64_t done = 0; done < 4 * count; done += PhiloxStream::run) {
    stream.store_words(static_cast<std::uint32_t>(first_block + done / 4), word);
    for (std::int64_t i = 0; i < PhiloxStream::run && done + i < 4 * count; ++i) out[done + i] = word[i];
  }
}

}  // namespace fastscore::FASTSCORE_ISA

// Signs are made by flipping sign bits, from words of random bits that no other memory has seen; normals come in tiles
// that stay in the first-level cache.
#include "cpu/simd/hutchinson.h"

#include "cpu/simd/normal.h"
#include "cpu/simd/tails.h"

namespace fastscore::FASTSCORE_ISA {
namespace {

using std::int64_t;
using std::uint32_t;
constexpr int64_t tile_length = hutchinson_tile, tile_words = tile_length / 32;
static_assert(tile_length % PhiloxStream::run == 0 && tile_words % PhiloxStream::run == 0);

// Its noise, and where its elements are.
template <class Args>
struct Tile {
  const Args& args;
  int64_t row, first, n;
  PhiloxStream stream;

  Tile(const Args& args_, int64_t t)
      : args(args_),
        row(t / hutchinson_tiles(args_)),
        first(t % hutchinson_tiles(args_) * tile_length),
        n(args_.pixels * args_.channels - first < tile_length ? args_.pixels * args_.channels - first : tile_length),
        stream(args_.rng[0], args_.rng[1] + row / args_.batch, args_.samples[row % args_.batch]) {}

  void draw_words(uint32_t* word) const {
    for (int64_t i = 0; 32 * i < n; i += PhiloxStream::run)
      stream.store_words(static_cast<uint32_t>(first / 128 + i / 4), word + i);
  }

  // f(place in the sample, place in the tile) for all elements: channels are fastest in memory, pixels are in the tile.
  template <class F>
  void each_place(F&& f) const {
    int64_t channel = first / args.pixels, pixel = first % args.pixels;
    for (int64_t i = 0; i < n; ++channel, pixel = 0)
      for (; pixel < args.pixels && i < n; ++pixel, ++i) f(pixel * args.channels + channel, i);
  }
};

// Sign bits where a bit of the word is 0: of vector number `part` of the 32 elements of a word.
FASTSCORE_INLINE vf32 minus_zeros(uint32_t word, int part, vf32) {
  vu32 bit;
  for (int i = 0; i < lanes32; ++i) bit[i] = uint32_t{1} << i;
  const vi32 minus = bit_cast<vi32>(splat(word >> (part * lanes32)) & bit) == vi32{};
  return bit_cast<vf32>(bit_cast<vu32>(minus) & splat(uint32_t{1} << 31));
}
FASTSCORE_INLINE vf64 minus_zeros(uint32_t word, int part, vf64) {
  vu64 bit;
  for (int i = 0; i < lanes64; ++i) bit[i] = std::uint64_t{1} << i;
  const vi64 minus = bit_cast<vi64>(splat(std::uint64_t{word >> (part * lanes64)}) & bit) == vi64{};
  return bit_cast<vf64>(bit_cast<vu64>(minus) & splat(std::uint64_t{1} << 63));
}
FASTSCORE_INLINE vf32 flip(vf32 value, vf32 minus_zeros) {
  return bit_cast<vf32>(bit_cast<vu32>(value) ^ bit_cast<vu32>(minus_zeros));
}
FASTSCORE_INLINE vf64 flip(vf64 value, vf64 minus_zeros) {
  return bit_cast<vf64>(bit_cast<vu64>(value) ^ bit_cast<vu64>(minus_zeros));
}

// f(i, k, times, part) for the vectors of a tile: times(value) is their noise times `value`; `part` as in each_vector.
// k = i / lanes % 2 is known to the compiler.
template <class T, class Args, class F>
FASTSCORE_INLINE void each_noise(const Tile<Args>& tile, F&& f) {
  using Vec = typename Acc<T>::vec;
  constexpr int lanes = Acc<T>::lanes, vectors = 32 / lanes;
  const auto each = [&](auto&& with_noise) __attribute__((always_inline)) {
    int64_t i = 0;
    for (; i + 32 <= tile.n; i += 32) {
#pragma GCC unroll 16
      for (int k = 0; k < vectors; ++k) with_noise(i, k, Whole{});
    }
    for (int k = 0; i + k * lanes < tile.n; ++k) {
      const int64_t rest = tile.n - i - k * lanes;
      if (rest >= lanes)
        with_noise(i, k, Whole{});
      else
        with_noise(i, k, First{rest});
    }
  };
  if (tile.args.signs) {
    uint32_t word[tile_words];
    tile.draw_words(word);
    each([&](int64_t i, int k, auto part) __attribute__((always_inline)) {
      const Vec minus = minus_zeros(word[i / 32], k, Vec{});
      f(i + k * lanes, k % 2, [&](Vec value) __attribute__((always_inline)) { return flip(value, minus); }, part);
    });
  } else {
    typename Acc<T>::scalar noise[tile_length];
    tile.stream.fill_normals(tile.first, tile.n, noise);
    each([&](int64_t i, int k, auto part) __attribute__((always_inline)) {
      const Vec eps = load(noise + i + k * lanes, part);
      f(i + k * lanes, k % 2, [&](Vec value) __attribute__((always_inline)) { return eps * value; }, part);
    });
  }
}

// Sums in double: of one vector of numbers.
struct DoubleSum {
  vf64 low = {}, high = {};

  [[gnu::always_inline]] void add(vf64 value) { low += value; }
  [[gnu::always_inline]] void add(vf32 value) {
    using Half = float __attribute__((vector_size(vector_bytes / 2)));
    Half half[2];
    __builtin_memcpy(half, &value, sizeof value);
    low += __builtin_convertvector(half[0], vf64);
    high += __builtin_convertvector(half[1], vf64);
  }
};

template <class T>
void product_tiles(const HutchinsonArgs& args, double* sums, int64_t begin, int64_t end) {
  T gathered[tile_length];
  for (int64_t t = begin; t < end; ++t) {
    const Tile<HutchinsonArgs> tile(args, t);
    const T* sample = static_cast<const T*>(args.jvp) + tile.row / args.batch * args.probe_stride +
                      tile.row % args.batch * args.sample_stride;
    const T* jvp = sample + tile.first;
    if (args.channels > 1) {
      tile.each_place([&](int64_t place, int64_t i) { gathered[i] = sample[place]; });
      jvp = gathered;
    }
    DoubleSum part_sums[2];
    each_noise<T>(tile, [&](int64_t i, int k, auto&& times, auto part)
                            __attribute__((always_inline)) { part_sums[k].add(times(load(jvp + i, part))); });
    sums[t] = sum((part_sums[0].low + part_sums[1].low) + (part_sums[0].high + part_sums[1].high));
  }
}

template <class T>
void probe_tiles(const HutchinsonProbeArgs& args, int64_t begin, int64_t end) {
  using Real = typename Acc<T>::scalar;
  T scattered[tile_length];
  for (int64_t t = begin; t < end; ++t) {
    const Tile<HutchinsonProbeArgs> tile(args, t);
    T* sample = static_cast<T*>(args.out) + tile.row * args.pixels * args.channels;
    T* out = args.channels > 1 ? scattered : sample + tile.first;
    const auto weight = splat(args.weight == nullptr ? Real{1} : static_cast<const Real*>(args.weight)[tile.row]);
    each_noise<T>(tile, [&](int64_t i, int, auto&& times, auto part)
                            __attribute__((always_inline)) { store(out + i, times(weight), part); });
    if (args.channels > 1) tile.each_place([&](int64_t place, int64_t i) { sample[place] = scattered[i]; });
  }
}

}  // namespace

void hutchinson(const HutchinsonArgs& args, double* sums, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) { product_tiles<decltype(like)>(args, sums, begin, end); });
}

void hutchinson_probe(const HutchinsonProbeArgs& args, int64_t begin, int64_t end) {
  for_dtype(args.dtype, [&](auto like) { probe_tiles<decltype(like)>(args, begin, end); });
}

}  // namespace fastscore::FASTSCORE_ISA

// Sums over samples whose bits depend neither on the memory format nor on alignment, the rest of the batch or the grid.
//
// A sample is cut into tiles, ranges of pixels in all channels, and those into quads, four pixels of one channel.
// Threads read in the order of the memory and leave the sum of each quad in shared memory, where it is added to the
// others in logical order. Sums of tiles are added in their order by a second kernel.
#pragma once

#include "cuda/device.h"

namespace fastscore::cuda {

inline constexpr int sum_threads = 256, sum_blocks = 4;  // of a block; as `run_blocks` in runs.h
inline constexpr int tile_quads = 1024;                  // most quads of a tile

struct SumTiles {
  std::int64_t channels, pixels;  // of a sample
  std::int64_t tile_pixels;       // a multiple of 8
  std::int64_t per_sample;
  bool channels_last;

  // At most 256 channels where `channels_last`.
  SumTiles(std::int64_t channels_, std::int64_t pixels_, bool channels_last_)
      : channels(channels_), pixels(pixels_), channels_last(channels_last_) {
    if (channels > 256) {  // one behind the other
      pixels *= channels;
      channels = 1;
    }
    tile_pixels = 4 * tile_quads / channels / 8 * 8;
    per_sample = (pixels + tile_pixels - 1) / tile_pixels;
  }
};

struct SumTile {
  std::int64_t sample, part, pixel;  // tile `part` of a sample begins at `pixel`
  int pixels, quads;                 // of the tile

  __device__ __forceinline__ SumTile(const SumTiles& tiles, std::int64_t index) {
    divide(index, tiles.per_sample, sample, part);
    pixel = part * tiles.tile_pixels;
    const std::int64_t rest = tiles.pixels - pixel;
    pixels = static_cast<int>(rest < tiles.tile_pixels ? rest : tiles.tile_pixels);
    quads = (pixels + 3) / 4 * static_cast<int>(tiles.channels);
  }
};

// Consecutive pixels of one channel of a tile. `vectors`: they lie side by side, in whole 16-byte words.
template <class T, bool vectors>
struct Piece {
  static constexpr int length = vectors && sizeof(T) == 2 ? 8 : 4;

  std::int64_t sample, offset, step;  // element i lies at offset + i * step of the sample
  int count, quad;                    // elements that there are; the first quad, in logical order

  static __device__ __forceinline__ int count_of(const SumTiles& tiles, const SumTile& tile) {
    return (tile.pixels + length - 1) / length * static_cast<int>(tiles.channels);
  }

  __device__ __forceinline__ Piece(const SumTiles& tiles, const SumTile& tile, int index) : sample(tile.sample) {
    const int channels = static_cast<int>(tiles.channels), width = (tile.pixels + length - 1) / length;
    const int channel = tiles.channels_last ? index % channels : index / width;
    const int first = (tiles.channels_last ? index / channels : index % width) * length;
    count = vectors || tile.pixels - first >= length ? length : tile.pixels - first;
    quad = channel * ((tile.pixels + 3) / 4) + first / 4;
    const std::int64_t pixel = tile.pixel + first;
    step = tiles.channels_last ? tiles.channels : 1;
    offset = tiles.channels_last ? pixel * channels + channel : channel * tiles.pixels + pixel;
  }

  // Elements that are not there are zero.
  template <class Operand>
  __device__ __forceinline__ void load(const Operand& from, accumulator_t<T> (&to)[length]) const {
    const T* data = static_cast<const T*>(from.data) + sample * from.stride + offset;
    if constexpr (vectors) {
      const Vec<T, length> vec = load_vec<length>(data);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) to[i] = widen(vec.value[i]);
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) to[i] = i < count ? widen(data[i * step]) : accumulator_t<T>{0};
    }
  }
};

// Whether `Piece` may take whole words of these operands; one that is not there has the address null.
template <class T, class... Operands>
bool sums_take_vectors(const SumTiles& tiles, const Operands&... operands) {
  constexpr int length = Piece<T, true>::length;
  return !tiles.channels_last && tiles.pixels % length == 0 &&
         (takes_vec<T, length>(operands.data, operands.stride) && ...);
}

// The sum of the tile's quads, in every thread. All threads of the block must call it, after they have written them.
template <class Real, int n>
__device__ __forceinline__ void sum_quads(const SharedPointer<Real> (&quads)[n], int count, double (&total)[n]) {
  __syncthreads();
  FASTSCORE_UNROLL
  for (int k = 0; k < n; ++k) {
    total[k] = 0;
    for (int i = threadIdx.x; i < count; i += sum_threads) total[k] += Real(quads[k][i]);
  }
  block_sum(total);
}

// The sums of a sample's tiles, n to a tile, in every lane. All lanes of the warp must call it.
template <int n>
__device__ __forceinline__ void sum_tiles(const double* sums, std::int64_t tiles, double (&total)[n]) {
  FASTSCORE_UNROLL
  for (int k = 0; k < n; ++k) total[k] = 0;
  for (std::int64_t i = threadIdx.x % warp_size; i < tiles; i += warp_size) {
    FASTSCORE_UNROLL
    for (int k = 0; k < n; ++k) total[k] += sums[n * i + k];
  }
  FASTSCORE_UNROLL
  for (int k = 0; k < n; ++k) total[k] = warp_sum(total[k]);
}

}  // namespace fastscore::cuda

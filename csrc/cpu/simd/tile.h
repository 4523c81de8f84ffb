// One tile of a step, and its noise.
#pragma once

#include "cpu/simd/normal.h"
#include "cpu/simd/step_tiles.h"

namespace fastscore::FASTSCORE_ISA {

// Pixels [pixel, pixel + pixels) of a sample: its elements [offset, offset + n) in memory.
struct Tile {
  std::int64_t sample, pixel, pixels, offset, n;

  template <class Args>
  Tile(const Args& args, StepTiles tiles, std::int64_t t)
      : sample(t / tiles.per_sample),
        pixel(t % tiles.per_sample * tiles.pixels),
        pixels(args.pixels - pixel < tiles.pixels ? args.pixels - pixel : tiles.pixels),
        offset(pixel * args.channels),
        n(pixels * args.channels) {}

  // Noise in the order of the elements in memory; Real is float or double.
  template <class Args, class Real>
  void draw(const Args& args, Real* noise) const {
    const PhiloxStream stream(args.rng[0], args.rng[1], args.samples[sample]);
    if (args.channels == 1) return stream.fill_normals(pixel, n, noise);
    Real row[step_tile];
    for (std::int64_t c = 0; c < args.channels; ++c) {
      stream.fill_normals(c * args.pixels + pixel, pixels, row);
      for (std::int64_t p = 0; p < pixels; ++p) noise[p * args.channels + c] = row[p];
    }
  }
};

}  // namespace fastscore::FASTSCORE_ISA

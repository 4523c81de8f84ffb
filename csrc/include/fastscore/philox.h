// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the normals
// made of it (Box and Muller, 1958), one block at a time, for host and device. fastscore/reference/philox.py is the
// specification: integers agree bit for bit, normals within 4 units in the last place.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastscore/host_device.h"

namespace fastscore {

struct PhiloxBlock {
  std::uint32_t word[4];
};

// key = seed, counter = (block, draw, sample mod 2^32, sample >> 32)
FASTSCORE_HD PhiloxBlock philox(std::int64_t seed, std::uint32_t draw, std::int64_t sample, std::uint32_t block) {
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(seed) >> 32);
  std::uint32_t c0 = block, c1 = draw, c2 = static_cast<std::uint32_t>(sample),
                c3 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(sample) >> 32);
  FASTSCORE_UNROLL
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// R^2 = -2 ln u and R, u = float32(r) 2^-32 + 2^-33 in (0, 1]; u has float32 precision for both results.
FASTSCORE_HD float uniform(std::uint32_t r) {
  return static_cast<float>(r) * 0x1p-32f + 0x1p-33f;
}

FASTSCORE_HD void squared_radius(std::uint32_t r, float& result) {
  result = -2.0f * logf(uniform(r));
}
FASTSCORE_HD void squared_radius(std::uint32_t r, double& result) {
  result = -2.0 * log(double{uniform(r)});
}
FASTSCORE_HD void radius(std::uint32_t r, float& result) {
  squared_radius(r, result);
  result = sqrtf(result);
}
FASTSCORE_HD void radius(std::uint32_t r, double& result) {
  squared_radius(r, result);
  result = sqrt(result);
}

// Cosine and sine of 2 pi d / 2^32 for |d| <= 2^29: at most an eighth of a turn (minimax polynomials in float).
FASTSCORE_HD void cosine_sine(std::int32_t d, float& cosine, float& sine) {
  const float x = static_cast<float>(d) * static_cast<float>(6.283185307179586476925 * 0x1p-32);
  const float z = x * x;
  cosine = fmaf(z * z, fmaf(z, fmaf(z, 2.443315711809948e-5f, -1.388731625493765e-3f), 4.166664568298827e-2f),
                fmaf(z, -0.5f, 1.0f));
  sine = fmaf(x * z, fmaf(z, fmaf(z, -1.9515295891e-4f, 8.3321608736e-3f), -1.6666654611e-1f), x);
}
FASTSCORE_HD void cosine_sine(std::int32_t d, double& cosine, double& sine) {
#if defined(__CUDA_ARCH__)
  sincospi(d * 0x1p-31, &sine, &cosine);
#else
  const double x = d * (6.283185307179586476925 * 0x1p-32);
  cosine = cos(x);
  sine = sin(x);
#endif
}

// Cosine and sine of 2 pi r / 2^32: the nearest quarter turn k and an exact remainder d.
template <class Real>
FASTSCORE_HD void turn(std::uint32_t r, Real& cosine, Real& sine) {
  const std::uint32_t k = (r + 0x20000000u) >> 30;
  Real c, s;
  cosine_sine(static_cast<std::int32_t>(r - (k << 30)), c, s);
  cosine = (k & 1) ? s : c;
  sine = (k & 1) ? c : s;
  if (((k + 1) & 2) != 0) cosine = -cosine;
  if ((k & 2) != 0) sine = -sine;
}

// Two standard normals of two words.
template <class Real>
FASTSCORE_HD void normal2(std::uint32_t first, std::uint32_t second, Real& z0, Real& z1) {
  Real length, c, s;
  radius(first, length);
  turn(second, c, s);
  z0 = length * c;
  z1 = length * s;
}

// The four standard normals of a block: elements 4 * block .. 4 * block + 3 of a sample.
template <class Real>
FASTSCORE_HD void normal4(const PhiloxBlock& block, Real (&z)[4]) {
  normal2(block.word[0], block.word[1], z[0], z[1]);
  normal2(block.word[2], block.word[3], z[2], z[3]);
}

}  // namespace fastscore

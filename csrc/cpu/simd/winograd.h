// The transforms of Winograd's convolution F(m x m, 3 x 3), one dimension at a time (Lavin and Gray, arXiv 1509.09308).
//
// A tile of m outputs needs m + 2 inputs, which are evaluated, as the coefficients of a polynomial, at m + 1 points and
// at infinity. For m = 4 the points are 0, +-5/8 and +-3/2: they err less than half as much as the usual 0, +-1, +-2
// (1.4e-6 and 3.1e-6 for 256 normal channels in float32, summed in one go), and every constant is exact.
// fastscore/reference/conv3x3.py derives the same transforms.
#pragma once

#include "cpu/simd/vec.h"

namespace fastscore::FASTSCORE_ISA {

template <int m>
struct Winograd;

// Weights w at point x: (w[0] + w[1] x + w[2] x^2) / product over the other points y of (x - y), and w[2] at infinity.
template <int size>
struct WeightTransform {
  double rows[size][3] = {};

  constexpr explicit WeightTransform(const double (&points)[size - 1]) {
    for (int i = 0; i < size - 1; ++i) {
      double product = 1;
      for (int j = 0; j < size - 1; ++j)
        if (j != i) product *= points[i] - points[j];
      for (int k = 0; k < 3; ++k) rows[i][k] = (k == 0 ? 1 : k == 1 ? points[i] : points[i] * points[i]) / product;
    }
    rows[size - 1][2] = 1;
  }
};

template <>
struct Winograd<2> {
  static constexpr int size = 4;
  static constexpr WeightTransform<size> weights{{0, 1, -1}};

  FASTSCORE_INLINE void input(vf32 (&d)[size]) {
    const vf32 middle = d[1];
    d[0] = d[2] - d[0];
    d[1] = d[2] + middle;
    d[2] = d[2] - middle;
    d[3] = d[3] - middle;
  }

  FASTSCORE_INLINE void output(const vf32 (&p)[size], vf32 (&y)[2]) {
    y[0] = p[0] + (p[1] + p[2]);
    y[1] = (p[1] - p[2]) + p[3];
  }
};

template <>
struct Winograd<4> {
  static constexpr int size = 6;
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr WeightTransform<size> weights{{0, a, -a, b, -b}};

  FASTSCORE_INLINE void input(vf32 (&d)[size]) {
    const vf32 both = splat(a2 * b2), sum = splat(-a2 - b2);
    const vf32 even_a = fma(splat(-b2), d[2], d[4]), odd_a = fma(splat(-b2), d[1], d[3]);
    const vf32 even_b = fma(splat(-a2), d[2], d[4]), odd_b = fma(splat(-a2), d[1], d[3]);
    d[0] = fma(both, d[0], fma(sum, d[2], d[4]));
    d[5] = fma(both, d[1], fma(sum, d[3], d[5]));
    d[1] = fma(splat(a), odd_a, even_a);
    d[2] = fma(splat(-a), odd_a, even_a);
    d[3] = fma(splat(b), odd_b, even_b);
    d[4] = fma(splat(-b), odd_b, even_b);
  }

  FASTSCORE_INLINE void output(const vf32 (&p)[size], vf32 (&y)[4]) {
    const vf32 even_a = p[1] + p[2], odd_a = p[1] - p[2], even_b = p[3] + p[4], odd_b = p[3] - p[4];
    y[0] = p[0] + (even_a + even_b);
    y[1] = fma(splat(b), odd_b, splat(a) * odd_a);
    y[2] = fma(splat(b2), even_b, splat(a2) * even_a);
    y[3] = p[5] + fma(splat(b2 * b), odd_b, splat(a2 * a) * odd_a);
  }
};

}  // namespace fastscore::FASTSCORE_ISA

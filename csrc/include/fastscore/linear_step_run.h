// What one thread of the CUDA kernel does. Kept apart from the .cu file because it compiles for the host too: there a
// test holds it to the reference on machines without a GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "fastscore/host_device.h"
#include "fastscore/linear_step.h"
#include "fastscore/philox.h"

namespace fastscore {

FASTSCORE_HD float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
FASTSCORE_HD double multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}

// Quotient and remainder; 32-bit division where it is enough, because GPUs have no instruction for 64 bits.
FASTSCORE_HD void divide(std::int64_t n, std::int64_t d, std::int64_t& quotient, std::int64_t& remainder) {
  if (((n | d) >> 31) == 0) {
    quotient = static_cast<std::uint32_t>(n) / static_cast<std::uint32_t>(d);
    remainder = static_cast<std::uint32_t>(n) % static_cast<std::uint32_t>(d);
  } else {
    quotient = n / d;
    remainder = n % d;
  }
}

// A run: consecutive logical elements of one sample; whole Philox blocks and whole 16-byte words.
template <class T>
inline constexpr int run_length = sizeof(T) == 2 ? 8 : 4;

template <class T>
struct alignas(16) Run {
  T value[run_length<T>];
};

// Does run `index` of batch * runs_per_sample. Needs widen(T) -> Real and narrow(Real, T*).
// `vectors`: the samples are contiguous, and every run is whole and 16-byte aligned.
template <class T, class Real, bool vectors>
FASTSCORE_HD void linear_step_run(const LinearStepArgs& args, std::int64_t runs_per_sample, std::int64_t index) {
  constexpr int length = run_length<T>;
  std::int64_t sample, first;
  divide(index, runs_per_sample, sample, first);
  first *= length;
  const std::int64_t rest = args.pixels * args.channels - first;
  const int n = vectors || rest >= length ? length : static_cast<int>(rest);

  [[maybe_unused]] std::int64_t at[length];  // where the elements lie in memory, if they are not consecutive
  if constexpr (!vectors) {
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) {
      std::int64_t channel, pixel;
      divide(first + i, args.pixels, channel, pixel);  // a contiguous sample is one channel
      at[i] = pixel * args.channels + channel;
    }
  }
  const auto load = [&](const LinearStepArgs::Operand& from, Real(&to)[length]) {
    const T* data = static_cast<const T*>(from.data) + sample * from.stride;
    if constexpr (vectors) {
      const Run<T> word = *reinterpret_cast<const Run<T>*>(data + first);
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) to[i] = widen(word.value[i]);
    } else {
      FASTSCORE_UNROLL
      for (int i = 0; i < length; ++i) to[i] = i < n ? widen(data[at[i]]) : Real{0};
    }
  };

  const Real* coefficient = static_cast<const Real*>(args.coefficients) + sample * args.coefficient_stride;
  const Real s = coefficient[args.coefficient_count - 1];
  Real value[length], term[length];
  load(args.x, value);
  FASTSCORE_UNROLL
  for (int i = 0; i < length; ++i) value[i] *= coefficient[0];
  // Noise of weight zero is not looked at, so that it may be anything.
  const int terms = args.term_count - (args.noise_given && s == 0);
  for (int k = 0; k < terms; ++k) {
    load(args.terms[k], term);
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) value[i] = multiply_add(coefficient[k + 1], term[i], value[i]);
  }
  if (args.samples != nullptr && s != 0) {
    FASTSCORE_UNROLL
    for (int i = 0; i < length; i += 4) {
      Real z[4];
      const auto block = static_cast<std::uint32_t>((first + i) / 4);
      normal4(philox(args.rng[0], static_cast<std::uint32_t>(args.rng[1]), args.samples[sample], block), z);
      FASTSCORE_UNROLL
      for (int j = 0; j < 4; ++j) value[i + j] = multiply_add(s, z[j], value[i + j]);
    }
  }

  T* out = static_cast<T*>(args.out) + sample * args.out_stride;
  if constexpr (vectors) {
    Run<T> word;
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i) narrow(value[i], &word.value[i]);
    *reinterpret_cast<Run<T>*>(out + first) = word;
  } else {
    FASTSCORE_UNROLL
    for (int i = 0; i < length; ++i)
      if (i < n) narrow(value[i], &out[at[i]]);
  }
}

// Whether `linear_step_run` may take whole words.
template <class T>
bool takes_vectors(const LinearStepArgs& args) {
  constexpr int length = run_length<T>;
  const auto aligned = [](const void* data, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % sizeof(Run<T>) == 0 && stride % length == 0;
  };
  bool good = args.channels == 1 && args.pixels % length == 0 && aligned(args.out, args.out_stride) &&
              aligned(args.x.data, args.x.stride);
  for (int k = 0; k < args.term_count; ++k) good = good && aligned(args.terms[k].data, args.terms[k].stride);
  return good;
}

template <class T>
std::int64_t runs_per_sample(const LinearStepArgs& args) {
  return (args.pixels * args.channels + run_length<T> - 1) / run_length<T>;
}

}  // namespace fastscore

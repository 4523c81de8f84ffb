// The per-thread code of the CUDA kernels, compiled for the host and called through ctypes by tests/test_native.py.
#include <cstdint>
#include <cstring>

#include "fastscore/dtype.h"

namespace fastscore {
static float widen(float v) {
  return v;
}
static double widen(double v) {
  return v;
}
static float widen(bf16 v) {
  const std::uint32_t bits = std::uint32_t{v.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static void narrow(float v, float* to) {
  *to = v;
}
static void narrow(double v, double* to) {
  *to = v;
}
static void narrow(float v, bf16* to) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  to->bits = static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
}  // namespace fastscore

#include "fastscore/linear_step_run.h"

using namespace fastscore;

template <class T, class Real>
static int all_runs(const LinearStepArgs& args) {
  const bool vectors = takes_vectors<T>(args);
  const std::int64_t runs = runs_per_sample<T>(args);
  for (std::int64_t i = 0; i < args.batch * runs; ++i)
    vectors ? linear_step_run<T, Real, true>(args, runs, i) : linear_step_run<T, Real, false>(args, runs, i);
  return vectors;
}

// Returns whether whole words were taken.
extern "C" int linear_step(int dtype, void* out, const void* x, std::int64_t stride, const void** terms, int term_count,
                           int noise_given, const void* coefficients, std::int64_t coefficient_stride,
                           int coefficient_count, const std::int64_t* rng, const std::int64_t* samples,
                           std::int64_t batch, std::int64_t pixels, std::int64_t channels) {
  LinearStepArgs args;
  args.out = out;
  args.out_stride = stride;
  args.x = {x, stride};
  for (int k = 0; k < term_count; ++k) args.terms[k] = {terms[k], stride};
  args.term_count = term_count;
  args.noise_given = noise_given != 0;
  args.coefficients = coefficients;
  args.coefficient_stride = coefficient_stride;
  args.coefficient_count = coefficient_count;
  args.rng = rng;
  args.samples = samples;
  args.batch = batch;
  args.pixels = pixels;
  args.channels = channels;
  switch (dtype) {
    case 0:
      return all_runs<float, float>(args);
    case 1:
      return all_runs<double, double>(args);
    default:
      return all_runs<bf16, float>(args);
  }
}

extern "C" void philox_block(std::int64_t seed, std::uint32_t draw, std::int64_t sample, std::uint32_t block,
                             std::uint32_t* words, float* z32, double* z64) {
  const PhiloxBlock result = philox(seed, draw, sample, block);
  float floats[4];
  double doubles[4];
  normal4(result, floats);
  normal4(result, doubles);
  std::memcpy(words, result.word, sizeof result.word);
  std::memcpy(z32, floats, sizeof floats);
  std::memcpy(z64, doubles, sizeof doubles);
}

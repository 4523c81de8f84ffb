// Which copy of the SIMD kernels runs, and how often each has run.
//
// A kernel is declared in csrc/cpu/simd/<op>.h for each instruction set, defined in csrc/cpu/simd/<op>.cpp inside
// namespace fastscore::FASTSCORE_ISA, and picked by FASTSCORE_KERNEL(<op>).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cpu/simd/kernel.h"

#if defined(__x86_64__)
#define FASTSCORE_KERNEL(name) \
  ::fastscore::pick(&::fastscore::baseline::name, &::fastscore::avx2::name, &::fastscore::avx512::name)
#else
#define FASTSCORE_KERNEL(name) (&::fastscore::baseline::name)
#endif

namespace fastscore {

enum class Isa : int { baseline, avx2, avx512 };

// Chosen once, when the library is loaded: the best that this CPU has, lowered by ATEN_CPU_CAPABILITY.
Isa selected_isa();
std::vector<std::string> compiled_isas();
const char* isa_name(Isa isa);

template <class Function>
Function pick(Function baseline, Function avx2, Function avx512) {
  switch (selected_isa()) {
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    default:
      return baseline;
  }
}

// Counts the launches of one op by what ran ("linear_step.avx2": 3), so that tests can prove it.
// Define one as a static object beside the op; `LaunchCounter::all()` finds it.
class LaunchCounter {
 public:
  explicit LaunchCounter(const char* op);
  void cpu() { counts_[static_cast<int>(selected_isa())].fetch_add(1, std::memory_order_relaxed); }
  void cuda() { counts_[3].fetch_add(1, std::memory_order_relaxed); }

  static std::vector<std::pair<std::string, std::int64_t>> all();  // those that are not zero
  static void reset();

 private:
  const char* op_;
  std::array<std::atomic<std::int64_t>, 4> counts_{};
};

}  // namespace fastscore

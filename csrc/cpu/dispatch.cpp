#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>

namespace fastscore {

namespace {

Isa best_isa_of_this_cpu() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return Isa::baseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : Isa::avx2;
#else
  return Isa::baseline;
#endif
}

// The names are those of torch, which reads the same variable; an unknown name lowers nothing, as there.
Isa highest_isa_allowed() {
  const char* text = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string capability = text == nullptr ? "" : text;
  if (capability == "default") return Isa::baseline;
  if (capability == "avx2") return Isa::avx2;
  return Isa::avx512;
}

// Counters are static objects of other files: a local static is there before the first of them.
std::vector<LaunchCounter*>& counters() {
  static std::vector<LaunchCounter*> list;
  return list;
}

}  // namespace

Isa selected_isa() {
  static const Isa isa = std::min(best_isa_of_this_cpu(), highest_isa_allowed());
  return isa;
}

std::vector<std::string> compiled_isas() {
#if defined(__x86_64__)
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

const char* isa_name(Isa isa) {
  constexpr const char* names[] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

LaunchCounter::LaunchCounter(const char* op) : op_(op) {
  counters().push_back(this);
}

std::vector<std::pair<std::string, std::int64_t>> LaunchCounter::all() {
  std::vector<std::pair<std::string, std::int64_t>> result;
  for (const LaunchCounter* counter : counters()) {
    for (int i = 0; i < 4; ++i) {
      const std::int64_t count = counter->counts_[i].load(std::memory_order_relaxed);
      const char* what = i == 3 ? "cuda" : isa_name(static_cast<Isa>(i));
      if (count != 0) result.emplace_back(std::string(counter->op_) + "." + what, count);
    }
  }
  return result;
}

void LaunchCounter::reset() {
  for (LaunchCounter* counter : counters())
    for (auto& count : counter->counts_) count.store(0, std::memory_order_relaxed);
}

}  // namespace fastscore

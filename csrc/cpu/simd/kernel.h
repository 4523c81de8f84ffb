// Declares a SIMD kernel once per instruction set. Plain macros: the SIMD sources include this file.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#define FASTSCORE_FOR_EACH_ISA(action) action(baseline) action(avx2) action(avx512)
#else
#define FASTSCORE_FOR_EACH_ISA(action) action(baseline)
#endif

// FASTSCORE_HD stands in front of every function that host and device code share, FASTSCORE_UNROLL before loops that a
// GPU must unroll to keep arrays in registers.
//
// On the host FASTSCORE_HD also gives internal linkage: the SIMD sources are compiled once per instruction set, and a
// shared inline function would let the linker keep the AVX-512 copy for a machine that has none.
#pragma once

#if defined(__CUDACC__)
#define FASTSCORE_HD static __host__ __device__ __forceinline__
#define FASTSCORE_UNROLL _Pragma("unroll")
#else
#define FASTSCORE_UNROLL
#define FASTSCORE_HD [[maybe_unused]] static inline __attribute__((always_inline))
#endif

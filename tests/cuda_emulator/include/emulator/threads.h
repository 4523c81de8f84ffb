// The threads of a block, their barriers and warps. See launch.cpp and barriers.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_api.h"

struct __half;
struct __half2;
struct __nv_bfloat16;
struct __nv_bfloat162;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace emulator {

using Where = std::source_location;

// Ends the launch with this message, the position of the running thread before it.
[[noreturn]] void fail(const std::string& what);

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread);

cudaError_t occupancy(int* blocks, const void* kernel, int threads, std::size_t dynamic_shared);

struct Votes {
  int count, threads;
};
Votes block_barrier(bool predicate, Where where);

// Every lane that `mask` names brings a value; lane i gets that of the lane `sources[i]` it asked for.
enum class WarpOp { sync, shuffle, ballot };
std::uint64_t warp_collective(WarpOp op, unsigned mask, std::uint64_t value, int source, Where where);

int lane();

template <class T, class... Types>
inline constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);
template <class T>
concept Shuffled = is_one_of<T, int, unsigned, long, unsigned long, long long, unsigned long long, float, double,
                             __half, __half2, __nv_bfloat16, __nv_bfloat162>;

template <Shuffled T>
T shuffle(unsigned mask, T value, int source, Where where) {
  std::uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = warp_collective(WarpOp::shuffle, mask, bits, source, where);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

void check_width(int width);

}  // namespace emulator

inline void __syncthreads(emulator::Where where = emulator::Where::current()) {
  emulator::block_barrier(false, where);
}
inline int __syncthreads_count(int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::block_barrier(predicate != 0, where).count;
}
inline int __syncthreads_or(int predicate, emulator::Where where = emulator::Where::current()) {
  return emulator::block_barrier(predicate != 0, where).count > 0;
}
inline int __syncthreads_and(int predicate, emulator::Where where = emulator::Where::current()) {
  const emulator::Votes votes = emulator::block_barrier(predicate != 0, where);
  return votes.count == votes.threads;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, emulator::Where where = emulator::Where::current()) {
  emulator::warp_collective(emulator::WarpOp::sync, mask, 0, 0, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Where where = emulator::Where::current()) {
  return static_cast<unsigned>(emulator::warp_collective(emulator::WarpOp::ballot, mask, predicate != 0, 0, where));
}
inline int __any_sync(unsigned mask, int predicate, emulator::Where where = emulator::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulator::Where where = emulator::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

// Lanes form segments of `width`; a source outside the segment of the caller is the caller itself.
template <emulator::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              emulator::Where where = emulator::Where::current()) {
  emulator::check_width(width);
  return emulator::shuffle(mask, value, (emulator::lane() & -width) | (source & (width - 1)), where);
}
template <emulator::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 emulator::Where where = emulator::Where::current()) {
  emulator::check_width(width);
  const int lane = emulator::lane(), source = lane - static_cast<int>(delta);
  return emulator::shuffle(mask, value, source < (lane & -width) ? lane : source, where);
}
template <emulator::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   emulator::Where where = emulator::Where::current()) {
  emulator::check_width(width);
  const int lane = emulator::lane(), source = lane + static_cast<int>(delta);
  return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, where);
}
template <emulator::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  emulator::Where where = emulator::Where::current()) {
  emulator::check_width(width);
  // A lower segment may be read, a higher one may not.
  const int lane = emulator::lane(), source = lane ^ lanes;
  return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, where);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(static_cast<Arguments&&>(arguments)...);
  return emulator::launch(*config, reinterpret_cast<const void*>(kernel), [&] { std::apply(kernel, copies); });
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel kernel, int threads,
                                                          std::size_t dynamic_shared) {
  return emulator::occupancy(blocks, reinterpret_cast<const void*>(kernel), threads, dynamic_shared);
}

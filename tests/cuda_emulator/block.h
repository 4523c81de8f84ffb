// The block that runs: its threads, and what they have done so far. Blocks run one after another, and one thread at a
// time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

namespace emulator {

inline constexpr std::size_t default_shared_limit = 48 * 1024, most_shared_limit = 227 * 1024;

enum class State { unstarted, ready, at_barrier, in_warp, finished };

struct Thread {
  State state = State::unstarted;
  Fiber* fiber = nullptr;
  Where where;  // it waits

  // In a warp-wide operation.
  WarpOp op = WarpOp::sync;
  unsigned mask = 0;
  int source = 0;
  std::uint64_t value = 0, result = 0;

  // Happened-before within the warp: clocks[own lane] counts the own synchronizations, the others are what of theirs
  // came before.
  std::array<std::uint32_t, 32> clocks = {};
};

struct Block {
  std::uint64_t number = 0;  // of all blocks that ever ran
  std::vector<Thread> threads;
  int current = -1;            // the thread that runs; -1 outside of a launch
  std::uint32_t barriers = 0;  // that it has passed
  int arrived = 0, votes = 0;  // at the next

  // Of shared memory; `shared_limit` holds for static and dynamic arrays together.
  std::size_t static_bytes = 0, dynamic_bytes = 0, dynamic_element = 0, shared_limit = 0;
};
extern Block block;

// The running thread waits: others have their turn until it is woken.
void wait_as(State state, Where where);
void wake(std::vector<int> threads);

// The launch that runs goes no further than the end of the running thread.
void stop_soon();

extern cudaError_t last_error;

uint3 index_of(int thread);
std::string text(const uint3& at);
std::string text(const Where& where);
std::string hexadecimal(unsigned mask);

}  // namespace emulator

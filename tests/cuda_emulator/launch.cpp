// Runs the blocks of a launch one after another, and the threads of a block as fibers that take turns at barriers, at
// warp-wide operations and when they end, in an order that a test may choose.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "block.h"
#include "emulator.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block block;
cudaError_t last_error = cudaSuccess;

namespace {

std::string report;
unsigned order = 0;
std::mt19937 generator;
std::map<const void*, int> dynamic_limits;

bool running = false, failed = false;
const std::function<void()>* body = nullptr;
std::vector<int> to_start;  // the next last
std::deque<int> ready;
std::size_t finished = 0;

Fiber scheduler;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle_fibers;

template <class T>
void reorder(T& items) {
  if (order != 0) std::shuffle(items.begin(), items.end(), generator);
}

// `fiber` goes on as the thread.
void become(int thread, Fiber* fiber) {
  block.current = thread;
  threadIdx = index_of(thread);
  block.threads[thread].fiber = fiber;
  block.threads[thread].state = State::ready;
}

int take_new() {
  const int thread = to_start.back();
  to_start.pop_back();
  return thread;
}

// A fiber runs threads from start to end as long as there are new ones.
void fiber_main() {
  Fiber* self = block.threads[block.current].fiber;
  Fiber::started(*self, scheduler);
  for (;;) {
    (*body)();
    block.threads[block.current].state = State::finished;
    ++finished;
    if (!failed && ready.empty() && !to_start.empty()) {
      become(take_new(), self);
    } else {
      idle_fibers.push_back(self);
      Fiber::hand_over(*self, scheduler);
    }
  }
}

// What each thread does, those that do the same in one line.
std::string who_does_what() {
  const auto doing = [](const Thread& thread) -> std::string {
    switch (thread.state) {
      case State::at_barrier:
        return "at __syncthreads (" + text(thread.where) + ")";
      case State::in_warp:
        return "in a warp-wide operation with mask " + hexadecimal(thread.mask) + " (" + text(thread.where) + ")";
      case State::finished:
        return "finished";
      default:
        return "running";
    }
  };
  std::string out;
  const int count = static_cast<int>(block.threads.size());
  for (int first = 0, last; first < count; first = last) {
    const std::string what = doing(block.threads[first]);
    for (last = first + 1; last < count && doing(block.threads[last]) == what; ++last) {
    }
    out += (first ? "; " : "") +
           ("thread" + (last - first > 1 ? "s " + text(index_of(first)) + " to " + text(index_of(last - 1))
                                         : " " + text(index_of(first)))) +
           ": " + what;
  }
  return out;
}

void run_block(std::size_t thread_count) {
  block.number++;
  block.threads.assign(thread_count, {});
  block.barriers = 0;
  block.arrived = block.votes = 0;
  block.static_bytes = block.dynamic_element = 0;
  for (std::size_t t = 0; t < thread_count; ++t) block.threads[t].clocks[t % 32] = 1;
  to_start.resize(thread_count);
  std::iota(to_start.rbegin(), to_start.rend(), 0);
  reorder(to_start);
  ready.clear();
  finished = 0;
  while (!failed && !(ready.empty() && to_start.empty())) {
    if (ready.empty()) {
      if (idle_fibers.empty()) idle_fibers.push_back(fibers.emplace_back(new Fiber(fiber_main)).get());
      Fiber* fiber = idle_fibers.back();
      idle_fibers.pop_back();
      become(take_new(), fiber);
    } else {
      const int next = ready.front();
      ready.pop_front();
      become(next, block.threads[next].fiber);
    }
    Fiber::hand_over(scheduler, *block.threads[block.current].fiber);
  }
  block.current = -1;
  if (!failed && finished != thread_count) {
    failed = true;
    record("block " + text(blockIdx) + ": deadlock: " + who_does_what());
  }
  if (failed) {  // the fibers stay wherever they were
    idle_fibers.clear();
    fibers.clear();
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------ messages

std::string text(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}
std::string text(const Where& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}
std::string hexadecimal(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof digits, "0x%x", mask);
  return digits;
}

uint3 index_of(int thread) {
  const auto t = static_cast<unsigned>(thread);
  return {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

void record(const std::string& what) {
  if (report.size() > 10000) return;
  if (!report.empty()) report += "\n";
  if (block.current >= 0) report += "block " + text(blockIdx) + ", thread " + text(threadIdx) + ": ";
  report += what;
}

void stop_soon() {
  failed = true;
}

void stop() {
  if (block.current < 0) return;
  failed = true;
  Fiber::hand_over(*block.threads[block.current].fiber, scheduler);
}

void fail(const std::string& what) {
  record(what);
  stop();
  std::fprintf(stderr, "CUDA emulator, outside of a launch: %s\n", what.c_str());
  std::abort();
}

// ------------------------------------------------------------------------------------------------ turns

void wait_as(State state, Where where) {
  Thread& self = block.threads[block.current];
  self.state = state;
  self.where = where;
  Fiber::hand_over(*self.fiber, scheduler);
}

void wake(std::vector<int> threads) {
  reorder(threads);
  for (int thread : threads) {
    block.threads[thread].state = State::ready;
    ready.push_back(thread);
  }
}

// ------------------------------------------------------------------------------------------------ launch

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  const auto refuse = [](const std::string& what) {
    record("launch: " + what);
    return last_error = cudaErrorInvalidConfiguration;
  };
  const dim3 grid = config.gridDim, shape = config.blockDim;
  const auto say = [](const dim3& d) { return text(uint3{d.x, d.y, d.z}); };
  if (running) return refuse("a kernel cannot launch another");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse("a grid of " + say(grid) + " blocks");
  if (shape.x == 0 || shape.y == 0 || shape.z == 0 || std::uint64_t{shape.x} * shape.y * shape.z > 1024 || shape.z > 64)
    return refuse("a block of " + say(shape) + " threads");
  const auto limit = dynamic_limits.find(kernel);
  const bool raised = limit != dynamic_limits.end();
  const std::size_t most_dynamic = raised ? static_cast<std::size_t>(limit->second) : default_shared_limit;
  if (config.dynamicSmemBytes > most_dynamic)
    return refuse(std::to_string(config.dynamicSmemBytes) + " bytes of dynamic shared memory, allowed are " +
                  std::to_string(most_dynamic));
  if (config.numAttrs != 0) return refuse("launch attributes are not emulated");

  gridDim = grid;
  blockDim = shape;
  block.dynamic_bytes = config.dynamicSmemBytes;
  block.shared_limit = raised ? most_shared_limit : default_shared_limit;
  body = &thread;
  generator.seed(order);
  std::vector<std::uint64_t> blocks(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  reorder(blocks);
  watch_addresses();
  running = true;
  failed = false;
  for (std::size_t i = 0; i < blocks.size() && !failed; ++i) {
    const std::uint64_t b = blocks[i];
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(std::size_t{shape.x} * shape.y * shape.z);
  }
  running = false;
  if (failed) last_error = cudaErrorLaunchFailure;
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > static_cast<int>(most_shared_limit)) return last_error = cudaErrorInvalidValue;
  dynamic_limits[kernel] = value;
  return cudaSuccess;
}

// What went wrong since the last call; valid until the next.
EMULATOR_EXPORT const char* emulator_report() {
  static std::string said;
  said = std::exchange(report, {});
  return said.c_str();
}
// Bytes of dynamic shared memory that the last launch asked for.
EMULATOR_EXPORT std::size_t emulator_dynamic_shared() {
  return block.dynamic_bytes;
}
// 0: blocks and threads in order. Any other number: an order made of it.
EMULATOR_EXPORT void emulator_set_order(unsigned seed) {
  order = seed;
}

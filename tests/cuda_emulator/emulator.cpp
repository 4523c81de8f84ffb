// Runs the blocks of a launch one after another, and the threads of a block as fibers that take turns at barriers, at
// warp-wide operations and when they end. One runs at a time, in an order that a test may choose.
#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr std::size_t static_shared_limit = 48 * 1024, dynamic_shared_limit = 227 * 1024;

enum class State { unstarted, ready, at_barrier, in_warp, finished };

struct Thread {
  State state = State::unstarted;
  Fiber* fiber = nullptr;
  Where where;

  // In a warp-wide operation.
  WarpOp op = WarpOp::sync;
  unsigned mask = 0;
  int source = 0;
  std::uint64_t value = 0, result = 0;

  // Happened-before within the warp: clocks[own lane] counts the own synchronizations, the others are what of theirs
  // came before.
  std::array<std::uint32_t, 32> clocks = {};
};

// What a launch leaves behind.
std::string report;
cudaError_t last_error = cudaSuccess;

// What a test may set.
int multiprocessors = 132;
unsigned order = 0;
std::mt19937 generator;

std::map<const void*, int> dynamic_limits;

// The launch that runs, and its block.
bool running = false, failed = false;
const std::function<void()>* body = nullptr;
std::vector<Thread> threads;
std::vector<int> to_start;
std::deque<int> ready;
int current = -1, finished = 0, arrived = 0, votes = 0;
std::uint32_t barriers = 0;
std::uint64_t block_number = 0;
std::size_t shared_bytes = 0, dynamic_bytes = 0, dynamic_element = 0;
std::vector<std::max_align_t> dynamic_memory;

Fiber scheduler;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle_fibers;

std::string text(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}
std::string text(const Where& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}
std::string hexadecimal(unsigned mask) {
  std::ostringstream out;
  out << "0x" << std::hex << mask;
  return out.str();
}

uint3 index_of(int thread) {
  const auto t = static_cast<unsigned>(thread);
  return {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
}

template <class T>
void shuffle_by_order(T& items) {
  if (order != 0) std::shuffle(items.begin(), items.end(), generator);
}

// ------------------------------------------------------------------------------------------------ turns

void become(int thread) {
  current = thread;
  threadIdx = index_of(thread);
}

// The running thread waits: others have their turn until it is ready.
void wait_as(State state, Where where) {
  const int self = current;
  threads[self].state = state;
  threads[self].where = where;
  Fiber::hand_over(*threads[self].fiber, scheduler);
}

void wake(std::vector<int> waiting) {
  shuffle_by_order(waiting);
  for (int thread : waiting) {
    threads[thread].state = State::ready;
    ready.push_back(thread);
  }
}

// A fiber runs threads from start to end as long as there are new ones.
void fiber_main() {
  Fiber* self = threads[current].fiber;
  Fiber::started(*self, scheduler);
  for (;;) {
    (*body)();
    threads[current].state = State::finished;
    ++finished;
    if (ready.empty() && !to_start.empty()) {
      become(to_start.back());
      to_start.pop_back();
      threads[current].fiber = self;
      threads[current].state = State::ready;
    } else {
      idle_fibers.push_back(self);
      Fiber::hand_over(*self, scheduler);
    }
  }
}

// The lowest of what `threads` are doing first, e.g. "threads 0-31 wait at __syncthreads (kernel.cu:12)".
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
  const int count = static_cast<int>(threads.size());
  for (int first = 0, last; first < count; first = last) {
    const std::string what = doing(threads[first]);
    for (last = first + 1; last < count && doing(threads[last]) == what; ++last) {
    }
    out += (first ? "; " : "") +
           ("thread" + (last - first > 1 ? "s " + text(index_of(first)) + " to " + text(index_of(last - 1))
                                         : " " + text(index_of(first)))) +
           ": " + what;
  }
  return out;
}

void run_block(const std::function<void()>& thread) {
  const std::size_t count = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
  threads.assign(count, {});
  for (std::size_t t = 0; t < count; ++t) threads[t].clocks[t % 32] = 1;
  to_start.resize(count);
  std::iota(to_start.rbegin(), to_start.rend(), 0);
  shuffle_by_order(to_start);
  ready.clear();
  finished = arrived = votes = 0;
  barriers = 0;
  shared_bytes = dynamic_element = 0;
  ++block_number;
  body = &thread;
  while (!failed) {
    int next;
    if (!ready.empty()) {
      next = ready.front();
      ready.pop_front();
    } else if (!to_start.empty()) {
      next = to_start.back();
      to_start.pop_back();
      if (idle_fibers.empty()) idle_fibers.push_back(fibers.emplace_back(new Fiber(fiber_main)).get());
      threads[next].fiber = idle_fibers.back();
      threads[next].state = State::ready;
      idle_fibers.pop_back();
    } else {
      break;
    }
    become(next);
    Fiber::hand_over(scheduler, *threads[next].fiber);
  }
  current = -1;
  if (!failed && finished != static_cast<int>(count)) {
    failed = true;
    record("block " + text(blockIdx) + ": deadlock: " + who_does_what());
  }
  if (failed) {  // the fibers stay wherever they were
    idle_fibers.clear();
    fibers.clear();
  }
}

}  // namespace

void record(const std::string& what) {
  if (report.size() > 10000) return;
  report += (report.empty() ? "" : "\n") + position() + what;
}

std::string position() {
  return current < 0 ? "" : "block " + text(blockIdx) + ", thread " + text(threadIdx) + ": ";
}

void stop() {
  if (current < 0) return;
  failed = true;
  Fiber::hand_over(*threads[current].fiber, scheduler);
}

void fail(const std::string& what) {
  record(what);
  stop();
  std::fprintf(stderr, "CUDA emulator: %s\n",
               what.c_str());  // not in a launch: a function of a kernel called on the host
  std::abort();
}

// ------------------------------------------------------------------------------------------------ barriers and warps

Votes block_barrier(bool predicate, Where where) {
  const int count = static_cast<int>(threads.size());
  if (arrived > 0) {
    const auto first =
        std::find_if(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::at_barrier; });
    if (text(first->where) != text(where))
      fail("divergent barrier: waits at __syncthreads (" + text(where) + ") while thread " +
           text(index_of(static_cast<int>(first - threads.begin()))) + " waits at another (" + text(first->where) +
           ")");
  }
  votes += predicate;
  const int self = current;
  if (++arrived < count) {
    wait_as(State::at_barrier, where);
  } else {
    std::vector<int> waiting;
    for (int t = 0; t < count; ++t) {
      threads[t].result = static_cast<std::uint64_t>(votes);
      if (t != self) waiting.push_back(t);
    }
    arrived = votes = 0;
    ++barriers;
    wake(std::move(waiting));
  }
  return {static_cast<int>(threads[self].result), count};
}

int lane() {
  return current % 32;
}

void check_width(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail("the width of a shuffle must be a power of two up to 32, got " + std::to_string(width));
}

std::uint64_t warp_collective(WarpOp op, unsigned mask, std::uint64_t value, int source, Where where) {
  const int self = current, base = self - self % 32;
  if ((mask >> lane() & 1) == 0)
    fail("the mask " + hexadecimal(mask) + " of a warp-wide operation (" + text(where) +
         ") does not name the caller, lane " + std::to_string(lane()));
  if (op == WarpOp::shuffle && (mask >> source & 1) == 0)
    fail("a shuffle (" + text(where) + ") reads from lane " + std::to_string(source) + ", which its mask " +
         hexadecimal(mask) + " does not name");
  Thread& me = threads[self];
  me.op = op;
  me.mask = mask;
  me.source = source;
  me.value = value;
  std::vector<int> members;
  bool complete = true;
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i & 1) == 0 || base + i == self) continue;
    if (base + i >= static_cast<int>(threads.size()))
      fail("the mask " + hexadecimal(mask) + " of a warp-wide operation (" + text(where) + ") names lane " +
           std::to_string(i) + ", which the block does not have");
    const Thread& other = threads[base + i];
    complete &=
        other.state == State::in_warp && other.op == op && other.mask == mask && text(other.where) == text(where);
    members.push_back(base + i);
  }
  if (!complete) {
    wait_as(State::in_warp, where);
    return me.result;
  }
  members.push_back(self);
  std::uint64_t ballot = 0;
  for (int t : members) ballot |= threads[t].value << (op == WarpOp::ballot ? t % 32 : 0);
  for (int t : members) {
    const int from = base + threads[t].source;
    threads[t].result = op == WarpOp::shuffle ? threads[from].value : ballot;
  }
  if (op == WarpOp::sync) {  // the others order no memory, says the programming guide
    auto joined = me.clocks;
    for (int t : members)
      for (int i = 0; i < 32; ++i) joined[i] = std::max(joined[i], threads[t].clocks[i]);
    for (int t : members) {
      threads[t].clocks = joined;
      ++threads[t].clocks[t % 32];
    }
  }
  members.pop_back();
  wake(std::move(members));
  return me.result;
}

// ------------------------------------------------------------------------------------------------ shared memory

void Shadow::enter(std::size_t elements, std::size_t bytes) {
  if (block_ == block_number) return;
  block_ = block_number;
  cells_.assign(elements, {});
  shared_bytes += bytes;
  if (shared_bytes > static_shared_limit)
    fail("the block declares " + std::to_string(shared_bytes) + " bytes, and has " +
         std::to_string(static_shared_limit));
}

bool Shadow::ordered(const Touch& earlier) const {
  if (earlier.thread < 0 || earlier.thread == current || earlier.barriers < barriers) return true;
  return earlier.thread / 32 == current / 32 && earlier.clock <= threads[current].clocks[earlier.thread % 32];
}

void Shadow::race(const char* now, const char* before, int other, std::int64_t index) const {
  fail(std::string("race: ") + now + " element " + std::to_string(index) + ", which thread " + text(index_of(other)) +
       " " + before + ", with no barrier between");
}

void Shadow::check(Access access, std::int64_t index) {
  if (current < 0) emulator::fail("shared memory " + name_ + " is used outside of a kernel");
  if (index < 0 || index >= static_cast<std::int64_t>(cells_.size()))
    fail("element " + std::to_string(index) + " is out of bounds: it has " + std::to_string(cells_.size()));
  Cell& cell = cells_[index];
  const int warp = current / 32;
  const Touch now = {current, barriers, threads[current].clocks[current % 32]};
  if (access != Access::write && !cell.initialized)
    fail("element " + std::to_string(index) + " is read before anybody wrote it");
  if (!ordered(cell.write) && !(access == Access::atomic && cell.atomic))
    race(access == Access::read ? "reads" : "writes", "wrote", cell.write.thread, index);
  if (access == Access::read) {
    if (cell.reading_warp < 0 || cell.read_barriers != barriers) {
      cell.reading_warp = warp;
      cell.read_barriers = barriers;
      cell.read_clocks = {};
      cell.foreign_read = {};
    }
    if (cell.reading_warp == warp)
      cell.read_clocks[current % 32] = now.clock;
    else
      cell.foreign_read = now;
    return;
  }
  if (cell.reading_warp >= 0 && cell.read_barriers == barriers) {
    for (int i = 0; i < 32; ++i) {
      const Touch read = {cell.reading_warp * 32 + i, barriers, cell.read_clocks[i]};
      if (read.clock > 0 && !ordered(read)) race("writes", "read", read.thread, index);
    }
    if (!ordered(cell.foreign_read)) race("writes", "read", cell.foreign_read.thread, index);
  }
  cell.reading_warp = -1;
  cell.write = now;
  cell.atomic = access == Access::atomic;
  cell.initialized = true;
}

std::pair<void*, Shadow*> dynamic_shared(std::size_t element_size) {
  static Shadow shadow("(dynamic)");
  if (dynamic_element != 0 && dynamic_element != element_size)
    fail("dynamic shared memory is declared with elements of " + std::to_string(dynamic_element) + " and of " +
         std::to_string(element_size) + " bytes");
  dynamic_element = element_size;
  shadow.enter(dynamic_bytes / element_size, 0);
  return {dynamic_memory.data(), &shadow};
}

// ------------------------------------------------------------------------------------------------ launch

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  const auto refuse = [](const std::string& what) {
    record("launch: " + what);
    return last_error = cudaErrorInvalidConfiguration;
  };
  const dim3 grid = config.gridDim, block = config.blockDim;
  const auto shape = [](const dim3& d) { return text(uint3{d.x, d.y, d.z}); };
  if (running) return refuse("a kernel cannot launch another");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse("a grid of " + shape(grid) + " blocks");
  if (block.x == 0 || block.y == 0 || block.z == 0 || std::uint64_t{block.x} * block.y * block.z > 1024 || block.z > 64)
    return refuse("a block of " + shape(block) + " threads");
  const auto limit = dynamic_limits.find(kernel);
  const std::size_t most = limit == dynamic_limits.end() ? static_shared_limit : std::size_t(limit->second);
  if (config.dynamicSmemBytes > most)
    return refuse(std::to_string(config.dynamicSmemBytes) + " bytes of dynamic shared memory, allowed are " +
                  std::to_string(most));
  if (config.numAttrs != 0) return refuse("launch attributes are not emulated");

  gridDim = grid;
  blockDim = block;
  dynamic_bytes = config.dynamicSmemBytes;
  dynamic_memory.resize(dynamic_bytes / sizeof(std::max_align_t) + 1);
  generator.seed(order);
  std::vector<std::uint64_t> blocks(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  shuffle_by_order(blocks);
  const std::size_t known = report.size();
  watch_addresses();
  running = true;
  failed = false;
  for (std::uint64_t b : blocks) {
    blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(thread);
    if (failed) break;
  }
  running = false;
  if (report.size() != known) last_error = cudaErrorLaunchFailure;
  return report.size() != known ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t occupancy(int* blocks, const void*, int block_size, std::size_t dynamic_shared) {
  if (block_size < 1 || block_size > 1024) return last_error = cudaErrorInvalidValue;
  const int by_threads = 2048 / ((block_size + 31) / 32 * 32);
  const int by_memory = static_cast<int>(228 * 1024 / (dynamic_shared + 1024));
  *blocks = std::min({by_threads, by_memory, 32});
  return cudaSuccess;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return last_error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unrecognized error code";
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return last_error = cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = 1024, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = static_shared_limit, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = 32, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = multiprocessors, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = 2048, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = 228 * 1024, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = dynamic_shared_limit, cudaSuccess;
  }
  return last_error = cudaErrorInvalidValue;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > static_cast<int>(dynamic_shared_limit)) return last_error = cudaErrorInvalidValue;
  dynamic_limits[kernel] = value;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------ for the tests

// What went wrong since the last call; valid until the next.
EMULATOR_EXPORT const char* emulator_report() {
  static std::string said;
  said = std::exchange(report, {});
  return said.c_str();
}
EMULATOR_EXPORT const char* emulator_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
// 0: blocks and threads in order. Any other number: an order made of it.
EMULATOR_EXPORT void emulator_set_order(unsigned seed) {
  order = seed;
}
EMULATOR_EXPORT void emulator_set_multiprocessors(int count) {
  multiprocessors = count;
}

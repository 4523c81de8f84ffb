// The checks behind emulator/shared.h.
#include <cstddef>

#include "block.h"

namespace emulator {

void Shadow::enter(std::size_t elements, std::size_t bytes) {
  if (block_ == block.number) return;
  block_ = block.number;
  cells_.assign(elements, {});
  block.static_bytes += bytes;
  if (bytes == 0) return;  // dynamic
  const std::size_t all = block.static_bytes + block.dynamic_bytes;
  if (block.static_bytes > default_shared_limit)
    fail("the block declares " + std::to_string(block.static_bytes) + " bytes, and has " +
         std::to_string(default_shared_limit));
  if (all > block.shared_limit)
    fail("the block has " + std::to_string(all) + " bytes with the dynamic ones, allowed are " +
         std::to_string(block.shared_limit));
}

bool Shadow::ordered(const Touch& earlier) const {
  if (earlier.thread < 0 || earlier.thread == block.current || earlier.barriers < block.barriers) return true;
  return earlier.thread / 32 == block.current / 32 &&
         earlier.clock <= block.threads[block.current].clocks[earlier.thread % 32];
}

void Shadow::race(const char* now, const char* before, int other, std::int64_t index) const {
  fail(std::string("race: ") + now + " element " + std::to_string(index) + ", which thread " + text(index_of(other)) +
       " " + before + ", with no barrier between");
}

void Shadow::check(Access access, std::int64_t index) {
  if (block.current < 0) emulator::fail("shared memory " + name_ + " is used outside of a kernel");
  if (index < 0 || index >= static_cast<std::int64_t>(cells_.size()))
    fail("element " + std::to_string(index) + " is out of bounds: it has " + std::to_string(cells_.size()));
  Cell& cell = cells_[index];
  const int warp = block.current / 32;
  const Touch now = {block.current, block.barriers, block.threads[block.current].clocks[block.current % 32]};
  if (access != Access::write && !cell.initialized)
    fail("element " + std::to_string(index) + " is read before anybody wrote it");
  if (!ordered(cell.write) && !(access == Access::atomic && cell.atomic))
    race(access == Access::read ? "reads" : "writes", "wrote", cell.write.thread, index);
  if (access == Access::read) {
    if (cell.reading_warp < 0 || cell.read_barriers != block.barriers) {
      cell.reading_warp = warp;
      cell.read_barriers = block.barriers;
      cell.read_clocks = {};
      cell.foreign_read = {};
    }
    if (cell.reading_warp == warp)
      cell.read_clocks[block.current % 32] = now.clock;
    else
      cell.foreign_read = now;
    return;
  }
  if (cell.reading_warp >= 0 && cell.read_barriers == block.barriers) {
    for (int i = 0; i < 32; ++i) {
      const Touch read = {cell.reading_warp * 32 + i, block.barriers, cell.read_clocks[i]};
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
  static std::vector<std::max_align_t> memory;
  memory.resize(most_shared_limit / sizeof(std::max_align_t));
  if (block.dynamic_element != 0 && block.dynamic_element != element_size)
    fail("dynamic shared memory is declared with elements of " + std::to_string(block.dynamic_element) + " and of " +
         std::to_string(element_size) + " bytes");
  block.dynamic_element = element_size;
  shadow.enter(block.dynamic_bytes / element_size, 0);
  return {memory.data(), &shadow};
}

}  // namespace emulator

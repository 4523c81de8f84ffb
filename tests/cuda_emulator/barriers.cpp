// Barriers of a block, and the operations of a warp: those who come wait for those who are to come.
#include <algorithm>
#include <cstring>

#include "block.h"
#include "emulator.h"

namespace emulator {

namespace {

bool same(const Where& a, const Where& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

}  // namespace

Votes block_barrier(bool predicate, Where where) {
  const int count = static_cast<int>(block.threads.size());
  if (block.arrived > 0) {
    const auto first = std::find_if(block.threads.begin(), block.threads.end(),
                                    [](const Thread& t) { return t.state == State::at_barrier; });
    if (!same(first->where, where))
      fail("divergent barrier: waits at __syncthreads (" + text(where) + ") while thread " +
           text(index_of(static_cast<int>(first - block.threads.begin()))) + " waits at another (" +
           text(first->where) + ")");
  }
  block.votes += predicate;
  const int self = block.current;
  if (++block.arrived < count) {
    wait_as(State::at_barrier, where);
  } else {
    std::vector<int> waiting;
    for (int t = 0; t < count; ++t) {
      block.threads[t].result = static_cast<std::uint64_t>(block.votes);
      if (t != self) waiting.push_back(t);
    }
    block.arrived = block.votes = 0;
    ++block.barriers;
    wake(std::move(waiting));
  }
  return {static_cast<int>(block.threads[self].result), count};
}

int lane() {
  return block.current % 32;
}

void check_width(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail("the width of a shuffle must be a power of two up to 32, got " + std::to_string(width));
}

std::uint64_t warp_collective(WarpOp op, unsigned mask, std::uint64_t value, int source, Where where) {
  const int self = block.current, base = self - self % 32;
  if ((mask >> lane() & 1) == 0)
    fail("the mask " + hexadecimal(mask) + " of a warp-wide operation (" + text(where) +
         ") does not name the caller, lane " + std::to_string(lane()));
  if (op == WarpOp::shuffle && (mask >> source & 1) == 0)
    fail("a shuffle (" + text(where) + ") reads from lane " + std::to_string(source) + ", which its mask " +
         hexadecimal(mask) + " does not name");
  Thread& me = block.threads[self];
  me.op = op;
  me.mask = mask;
  me.source = source;
  me.value = value;
  std::vector<int> members;
  bool complete = true;
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i & 1) == 0 || base + i == self) continue;
    if (base + i >= static_cast<int>(block.threads.size()))
      fail("the mask " + hexadecimal(mask) + " of a warp-wide operation (" + text(where) + ") names lane " +
           std::to_string(i) + ", which the block does not have");
    const Thread& other = block.threads[base + i];
    complete =
        complete && other.state == State::in_warp && other.op == op && other.mask == mask && same(other.where, where);
    members.push_back(base + i);
  }
  if (!complete) {
    wait_as(State::in_warp, where);
    return me.result;
  }
  members.push_back(self);
  std::uint64_t ballot = 0;
  for (int t : members) ballot |= block.threads[t].value << (op == WarpOp::ballot ? t % 32 : 0);
  for (int t : members) {
    const int from = base + block.threads[t].source;
    block.threads[t].result = op == WarpOp::shuffle ? block.threads[from].value : ballot;
  }
  if (op == WarpOp::sync) {  // the others order no memory, says the programming guide
    auto joined = me.clocks;
    for (int t : members)
      for (int i = 0; i < 32; ++i) joined[i] = std::max(joined[i], block.threads[t].clocks[i]);
    for (int t : members) {
      block.threads[t].clocks = joined;
      ++block.threads[t].clocks[t % 32];
    }
  }
  members.pop_back();
  wake(std::move(members));
  return me.result;
}

}  // namespace emulator

// Memory that a kernel of the CPU works in: kept from call to call, since fresh memory costs more than the arithmetic
// that it serves. To be made `static thread_local`.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace fastscore {

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(memory_); }

  // `count` elements on a cache line of their own; what was there is lost.
  template <class T>
  T* get(std::int64_t count) {
    const std::int64_t bytes = (count * static_cast<std::int64_t>(sizeof(T)) + 63) / 64 * 64;
    if (bytes > bytes_) {
      std::free(memory_);
      bytes_ = 0;
      memory_ = std::aligned_alloc(64, bytes);
      if (memory_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace fastscore

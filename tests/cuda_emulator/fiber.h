// Threads of execution that hand over to one another by name.
#pragma once

#include <cstddef>
#include <memory>

namespace emulator {

class Fiber {
 public:
  Fiber();                         // the thread of the system
  explicit Fiber(void (*main)());  // starts there when it is first switched to; `main` must not return
  ~Fiber();
  Fiber(const Fiber&) = delete;

  static void hand_over(Fiber& from, Fiber& to);
  // The first thing that `main` does.
  static void started(Fiber& self, Fiber& from);

 private:
  struct Context;
  std::unique_ptr<Context> context_;
  void* mapping_ = nullptr;
  const void* bottom_ = nullptr;  // of the stack
  std::size_t size_ = 0;
  void* fake_stack_ = nullptr;  // of AddressSanitizer
};

}  // namespace emulator

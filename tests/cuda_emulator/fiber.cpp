#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

// There if AddressSanitizer is loaded; it must know on which stack the program is.
extern "C" {
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
[[gnu::weak]] void __asan_unpoison_memory_region(const volatile void* at, std::size_t size);
}

#if defined(__x86_64__)

// Saves the registers that a callee must keep, and takes those of the other stack.
asm(R"(
.text
.hidden emulator_switch_stack
.globl emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");
extern "C" void emulator_switch_stack(void** save, void* stack);

struct emulator::Fiber::Context {
  void* stack = nullptr;

  void prepare(char* bottom, std::size_t size, void (*main)()) {
    auto top = reinterpret_cast<void**>(bottom + size);
    *--top = nullptr;  // the return address of `main`
    *--top = reinterpret_cast<void*>(main);
    stack = top - 6;  // the registers, zero in fresh pages
  }
  static void swap(Context& from, Context& to) { emulator_switch_stack(&from.stack, to.stack); }
};

#else

#include <ucontext.h>

struct emulator::Fiber::Context {
  ucontext_t context;

  void prepare(char* bottom, std::size_t size, void (*main)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, main, 0);
  }
  static void swap(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};

#endif

namespace emulator {

Fiber::Fiber() : context_(new Context) {}

Fiber::Fiber(void (*main)()) : Fiber() {
  size_ = 256 * 1024;
  const auto guard = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));  // below the stack, so that running over shows
  mapping_ = mmap(nullptr, guard + size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  char* bottom = static_cast<char*>(mapping_) + guard;
  if (mapping_ == MAP_FAILED || mprotect(bottom, size_, PROT_READ | PROT_WRITE) != 0) {
    std::perror("CUDA emulator: the stack of a thread");
    std::abort();
  }
  bottom_ = bottom;
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom_, size_);
  context_->prepare(bottom, size_, main);
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
  munmap(mapping_, static_cast<const char*>(bottom_) - static_cast<char*>(mapping_) + size_);
}

void Fiber::hand_over(Fiber& from, Fiber& to) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
  Context::swap(*from.context_, *to.context_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
}

void Fiber::started(Fiber& self, Fiber& from) {
  // Tells where the stack of the system's thread lies: nobody else knows.
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(self.fake_stack_, &from.bottom_, &from.size_);
}

}  // namespace emulator

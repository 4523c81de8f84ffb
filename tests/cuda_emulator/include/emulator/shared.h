// Shared memory that checks every access: its bounds, that somebody wrote what is read, and that a barrier stands
// between accesses of two threads of which one writes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emulator/threads.h"

namespace emulator {

enum class Access { read, write, atomic };

// The history of every element of one array.
class Shadow {
 public:
  explicit Shadow(std::string name) : name_(std::move(name)) {}

  // Before the first access of a thread: empties the array if it still holds another block.
  void enter(std::size_t elements, std::size_t bytes);
  void check(Access access, std::int64_t index);
  [[noreturn]] void fail(const std::string& what) const { emulator::fail("shared memory " + name_ + ": " + what); }

 private:
  // When a thread touched an element: after how many barriers of its block and synchronizations of its warp.
  struct Touch {
    int thread = -1;
    std::uint32_t barriers = 0, clock = 0;
  };
  struct Cell {
    Touch write;
    bool atomic = false;  // the last write
    bool initialized = false;
    Touch foreign_read;  // a read since then by another warp than the next
    int reading_warp = -1;
    std::uint32_t read_barriers = 0;
    std::array<std::uint32_t, 32> read_clocks = {};  // by lane of reading_warp; 0 where it did not read
  };
  bool ordered(const Touch& earlier) const;
  [[noreturn]] void race(const char* first, const char* second, int other, std::int64_t index) const;

  std::string name_;
  std::vector<Cell> cells_;
  std::uint64_t block_ = 0;
};

template <class T>
class SharedElement {
 public:
  SharedElement(T* data, Shadow* shadow, std::int64_t index) : data_(data), shadow_(shadow), index_(index) {}
  SharedElement(const SharedElement&) = default;

  operator T() const { return load(); }
  T load() const {
    shadow_->check(Access::read, index_);
    return data_[index_];
  }
  const SharedElement& operator=(const T& value) const
    requires(!std::is_const_v<T>)
  {
    shadow_->check(Access::write, index_);
    data_[index_] = value;
    return *this;
  }
  const SharedElement& operator=(const SharedElement& other) const { return *this = other.load(); }
  const SharedElement& operator+=(const T& value) const { return *this = load() + value; }
  const SharedElement& operator-=(const T& value) const { return *this = load() - value; }
  const SharedElement& operator*=(const T& value) const { return *this = load() * value; }
  auto operator&() const;

  // Reads, writes, and gives what was read, at once.
  template <class Update>
  T atomically(Update update) const {
    shadow_->check(Access::atomic, index_);
    const T old = data_[index_];
    data_[index_] = update(old);
    return old;
  }

 private:
  T* data_;
  Shadow* shadow_;
  std::int64_t index_;
};

template <class T>
class SharedPointer {
 public:
  SharedPointer(T* data, Shadow* shadow, std::int64_t index = 0) : data_(data), shadow_(shadow), index_(index) {}
  operator SharedPointer<const T>() const
    requires(!std::is_const_v<T>)
  {
    return {data_, shadow_, index_};
  }

  SharedElement<T> operator[](std::int64_t i) const { return {data_, shadow_, index_ + i}; }
  SharedElement<T> operator*() const { return (*this)[0]; }
  SharedPointer operator+(std::int64_t n) const { return {data_, shadow_, index_ + n}; }
  SharedPointer operator-(std::int64_t n) const { return {data_, shadow_, index_ - n}; }
  SharedPointer& operator+=(std::int64_t n) { return *this = *this + n; }

  void check_aligned(std::uintptr_t bytes) const {
    if (reinterpret_cast<std::uintptr_t>(data_ + index_) % bytes != 0)
      shadow_->fail("the address of element " + std::to_string(index_) + " is no multiple of " + std::to_string(bytes) +
                    " bytes");
  }

 private:
  T* data_;
  Shadow* shadow_;
  std::int64_t index_;
};

template <class T>
auto SharedElement<T>::operator&() const {
  return SharedPointer<T>(data_, shadow_, index_);
}

// `__shared__ T name[count]`
template <class T, std::size_t count>
class SharedArray {
 public:
  explicit SharedArray(const char* name) : shadow_(name) {}
  SharedPointer<T> enter() {
    shadow_.enter(count, sizeof data_);
    return {data_, &shadow_};
  }

 private:
  alignas(16) T data_[count];
  Shadow shadow_;
};

// `extern __shared__ T name[]`
std::pair<void*, Shadow*> dynamic_shared(std::size_t element_size);

template <class T>
SharedPointer<T> dynamic_shared() {
  const auto [data, shadow] = dynamic_shared(sizeof(T));
  return {static_cast<T*>(data), shadow};
}

}  // namespace emulator

#define FASTSCORE_SHARED(T, name, count)                       \
  static emulator::SharedArray<T, count> name##_memory(#name); \
  const emulator::SharedPointer<T> name = name##_memory.enter()
#define FASTSCORE_DYNAMIC_SHARED(T, name) const emulator::SharedPointer<T> name = emulator::dynamic_shared<T>()

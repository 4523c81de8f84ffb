// What the parts of the emulator, and the entries that tests call, know of each other.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))

// An entry for ctypes: `function(args, stream)` called with a copy of the structure in Python.
#define EMULATOR_ENTRY(name, Args, function)                                                                  \
  EMULATOR_EXPORT int name(const void* args, std::size_t size) {                                              \
    if (size != sizeof(Args)) {                                                                               \
      emulator::record(#Args " has " + std::to_string(sizeof(Args)) + " bytes, got " + std::to_string(size)); \
      return -1;                                                                                              \
    }                                                                                                         \
    return function(*static_cast<const Args*>(args), nullptr);                                                \
  }

namespace emulator {

// Adds a line to the report, with the block and thread that run.
void record(const std::string& what);
// Ends the launch; outside of a launch, returns.
void stop();
// What AddressSanitizer finds from now on, if it is loaded, is recorded.
void watch_addresses();

}  // namespace emulator

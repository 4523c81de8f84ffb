// The CUDA runtime, for a device with the limits of compute capability 9.0, as far as it is not about launches.
#include <algorithm>
#include <cstring>
#include <utility>

#include "block.h"
#include "emulator.h"

namespace emulator {

static int multiprocessors = 132;

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
      return *value = int{default_shared_limit}, cudaSuccess;
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
      return *value = int{most_shared_limit}, cudaSuccess;
  }
  return last_error = cudaErrorInvalidValue;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------------ for the tests

EMULATOR_EXPORT const char* emulator_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
EMULATOR_EXPORT void emulator_set_multiprocessors(int count) {
  multiprocessors = count;
}

// Kernels that are correct, and wrong in one place where `planted` is set. Each runs as two blocks of 64 threads.
#include "defects.h"

#include "cuda/device.h"

namespace {

using namespace fastscore::cuda;

constexpr int threads = 64;

template <bool planted>
__global__ void missing_barrier(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, tile, threads);
  const int t = threadIdx.x;
  tile[t] = data[t];
  if constexpr (!planted) __syncthreads();
  data[t] = tile[threads - 1 - t];
}

// Within a warp __syncwarp orders what threads wrote and read, a shuffle does not.
template <bool planted>
__global__ void missing_syncwarp(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, tile, threads);
  const int t = threadIdx.x;
  tile[t] = data[t];
  const float v = __shfl_xor_sync(full_warp, data[t], 1);
  if constexpr (!planted) __syncwarp();
  data[t] = tile[t ^ 1] + v;
}

template <bool planted>
__global__ void overwritten_while_read(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, total, 1);
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) total[0] = static_cast<float>(round);
    __syncthreads();
    data[threadIdx.x] += total[0];
    if constexpr (!planted) __syncthreads();
  }
}

// All write the same value.
template <bool planted>
__global__ void written_twice(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, total, 1);
  if (planted || threadIdx.x == 0) total[0] = 1;
  __syncthreads();
  data[threadIdx.x] = total[0];
}

template <bool planted>
__global__ void atomic_and_plain(float* data, std::int64_t) {
  FASTSCORE_SHARED(int, count, 1);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1);
  if constexpr (!planted) __syncthreads();
  data[threadIdx.x] = static_cast<float>(count[0]);
}

template <bool planted>
__global__ void uninitialized(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, tile, threads);
  if (!planted || threadIdx.x % 2 == 0) tile[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = tile[threads - 1 - threadIdx.x];
}

// What the first block wrote is not there for the second.
template <bool planted>
__global__ void left_by_another_block(float* data, std::int64_t) {
  FASTSCORE_DYNAMIC_SHARED(float, tile);
  if (!planted || blockIdx.x == 0) tile[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = tile[threads - 1 - threadIdx.x];
}

template <bool planted>
__global__ void beyond_shared(float* data, std::int64_t) {
  FASTSCORE_DYNAMIC_SHARED(float, tile);
  for (int i = threadIdx.x; i < threads + planted; i += threads) tile[i] = data[i];
}

template <bool planted>
__global__ void beyond_global(float* data, std::int64_t count) {
  const std::int64_t t = threadIdx.x;
  float sum = 0;
  for (std::int64_t i = t; i < count + planted; i += threads) sum += data[i];
  data[t] = sum;
}

template <bool planted>
__global__ void misaligned_global(float* data, std::int64_t) {
  auto vec = load_vec<4>(data + 4 * (threadIdx.x % 8) + (planted ? 1 : 4));
  if (threadIdx.x == 0) data[0] = vec.value[0];
}

template <bool planted>
__global__ void misaligned_float4(float* data, std::int64_t) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(data + (planted ? 2 : 4)));
  if (threadIdx.x == 0) data[0] = v.x;
}

template <bool planted>
__global__ void misaligned_shared(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, tile, threads);
  tile[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < 8) store_vec(data + 4 * threadIdx.x, load_vec<4>(tile + 4 * threadIdx.x + (planted ? 2 : 4)));
}

template <bool planted>
__global__ void divergent_barrier(float* data, std::int64_t) {
  if (!planted) {
    __syncthreads();
  } else if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  data[threadIdx.x] = 1;
}

template <bool planted>
__global__ void return_before_barrier(float* data, std::int64_t) {
  if (planted && threadIdx.x >= 40) return;
  const int count = __syncthreads_count(threadIdx.x % 2);
  data[threadIdx.x] = static_cast<float>(count);
}

template <bool planted>
__global__ void lane_that_never_comes(float* data, std::int64_t) {
  if (planted && threadIdx.x == 35) return;
  data[threadIdx.x] = warp_sum(data[threadIdx.x]);
}

template <bool planted>
__global__ void caller_not_in_mask(float* data, std::int64_t) {
  const unsigned mask = planted ? 0x0000ffffu : full_warp;
  data[threadIdx.x] = static_cast<float>(__any_sync(mask, threadIdx.x == 3));
}

template <bool planted>
__global__ void source_not_in_mask(float* data, std::int64_t) {
  if (threadIdx.x % 32 < 16) data[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, data[threadIdx.x], planted ? 16 : 8);
}

template <bool planted>
__global__ void different_masks(float* data, std::int64_t) {
  __syncwarp(planted && threadIdx.x % 32 == 7 ? 0x00ffffffu : full_warp);
  data[threadIdx.x] = 1;
}

template <bool planted>
__global__ void signed_overflow(float* data, std::int64_t) {
  const int size = planted ? 1 << 30 : 1 << 10;
  data[threadIdx.x] = static_cast<float>(size * (static_cast<int>(threadIdx.x) % 4));
}

template <bool planted>
__global__ void shift_too_far(float* data, std::int64_t) {
  const int by = threadIdx.x % 32 + planted;
  data[threadIdx.x] = static_cast<float>(1u << by);
}

template <bool planted>
__global__ void beyond_registers(float* data, std::int64_t) {
  float values[4] = {1, 2, 3, 4};
  const int i = threadIdx.x % 4 + planted;
  values[i] += data[threadIdx.x];
  data[threadIdx.x] = values[0] + values[3];
}

template <bool planted>
__global__ void too_large_for_an_int(float* data, std::int64_t) {
  data[threadIdx.x] = static_cast<float>(static_cast<int>((planted ? 3e9f : 3e8f) + data[threadIdx.x]));
}

template <bool planted>
__global__ void divided_by_zero(float* data, std::int64_t count) {
  data[threadIdx.x] = static_cast<float>(count / (static_cast<int>(threadIdx.x) + !planted));
}

template <bool planted>
__global__ void too_much_static_shared(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, small, 4096);
  small[threadIdx.x] = 1;
  if constexpr (planted) {
    FASTSCORE_SHARED(float, large, 8193);
    large[threadIdx.x] = 1;
  }
  data[threadIdx.x] = small[threadIdx.x];
}

// Beside the dynamic memory of the launch.
template <bool planted>
__global__ void too_much_shared_together(float* data, std::int64_t) {
  FASTSCORE_SHARED(float, large, (12 * 1024 - (planted ? 0 : threads)));
  large[threadIdx.x] = 1;
  data[threadIdx.x] = large[threadIdx.x];
}

using Kernel = void (*)(float*, std::int64_t);
#define BOTH(kernel) {kernel<false>, kernel<true>}
// In the order of test_emulator.py.
const Kernel kernels[][2] = {
    BOTH(missing_barrier),
    BOTH(missing_syncwarp),
    BOTH(overwritten_while_read),
    BOTH(written_twice),
    BOTH(atomic_and_plain),
    BOTH(uninitialized),
    BOTH(left_by_another_block),
    BOTH(beyond_shared),
    BOTH(beyond_global),
    BOTH(misaligned_global),
    BOTH(misaligned_float4),
    BOTH(misaligned_shared),
    BOTH(divergent_barrier),
    BOTH(return_before_barrier),
    BOTH(lane_that_never_comes),
    BOTH(caller_not_in_mask),
    BOTH(source_not_in_mask),
    BOTH(different_masks),
    BOTH(signed_overflow),
    BOTH(shift_too_far),
    BOTH(beyond_registers),
    BOTH(too_large_for_an_int),
    BOTH(divided_by_zero),
    BOTH(too_much_static_shared),
    BOTH(too_much_shared_together),
};

}  // namespace

cudaError_t run_defect(const DefectArgs& args, cudaStream_t stream) {
  return launch(kernels[args.defect][args.planted], 2, threads, threads * sizeof(float), stream, args.data, args.count);
}

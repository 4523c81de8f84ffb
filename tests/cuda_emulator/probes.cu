// Kernels that show what device functions compute: those that the emulator stands in for, and those of cuda/device.h.
#include "probes.h"

#include "cuda/device.h"
#include "fastscore/philox.h"

using namespace fastscore;
using namespace fastscore::cuda;

namespace {

constexpr int threads = 128;

dim3 shape(const std::uint32_t (&d)[3]) {
  return {d[0], d[1], d[2]};
}

__device__ std::int64_t thread_number() {
  return std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

// ------------------------------------------------------------------------------------------------ elements

__global__ void from_half(const __half* in, float* out, std::int64_t count) {
  for (std::int64_t i = thread_number(); i < count; i += gridDim.x * threads) out[i] = widen(in[i]);
}
__global__ void to_half(const float* in, __half* out, std::int64_t count) {
  for (std::int64_t i = thread_number(); i < count; i += gridDim.x * threads) out[i] = narrow<__half>(in[i]);
}
__global__ void from_bf16(const __nv_bfloat16* in, float* out, std::int64_t count) {
  for (std::int64_t i = thread_number(); i < count; i += gridDim.x * threads) out[i] = widen(in[i]);
}
__global__ void to_bf16(const float* in, __nv_bfloat16* out, std::int64_t count) {
  for (std::int64_t i = thread_number(); i < count; i += gridDim.x * threads) out[i] = narrow<__nv_bfloat16>(in[i]);
}

// ------------------------------------------------------------------------------------------------ threads

__global__ void write_indices(std::int32_t* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  __syncthreads();
  std::int32_t* to = out + 6 * (std::int64_t{block} * blockDim.x * blockDim.y * blockDim.z + thread);
  const unsigned values[6] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z};
  for (int i = 0; i < 6; ++i) to[i] = static_cast<std::int32_t>(values[i]);
}

// Per thread: shfl, up, down, xor.
__global__ void shuffle_all(const double* in, double* out, int number, int width) {
  const int t = threadIdx.x;
  const double v = in[t];
  out[4 * t] = __shfl_sync(full_warp, v, number, width);
  out[4 * t + 1] = __shfl_up_sync(full_warp, v, static_cast<unsigned>(number), width);
  out[4 * t + 2] = __shfl_down_sync(full_warp, v, static_cast<unsigned>(number), width);
  out[4 * t + 3] = __shfl_xor_sync(full_warp, v, number, width);
}

// Per thread: ballot, any, all of the own half warp; count, or, and of the block; the number of bits in the ballot.
__global__ void vote_all(const std::int32_t* in, std::int64_t* out) {
  const int t = threadIdx.x, predicate = in[t];
  const unsigned half = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  std::int64_t* to = out + 7 * t;
  const unsigned ballot = __ballot_sync(half, predicate);
  to[0] = ballot;
  to[1] = __any_sync(half, predicate);
  to[2] = __all_sync(half, predicate);
  to[3] = __syncthreads_count(predicate);
  to[4] = __syncthreads_or(predicate);
  to[5] = __syncthreads_and(predicate);
  to[6] = __popc(ballot);
}

// In which order the threads had their turn.
__global__ void take_ticket(unsigned* next, std::int32_t* out) {
  out[thread_number()] = static_cast<std::int32_t>(atomicAdd(next, 1u));
  __threadfence();
}

__global__ void atomics_of_all_kinds(const std::int32_t* in, std::int32_t* out) {
  FASTSCORE_SHARED(int, shared, 3);
  FASTSCORE_SHARED(unsigned long long, wide, 1);
  if (threadIdx.x < 3) shared[threadIdx.x] = in[0];
  if (threadIdx.x == 0) wide[0] = 0;
  __syncthreads();
  const int v = in[threadIdx.x];
  atomicAdd(&shared[0], v);
  atomicMax(shared + 1, v);
  atomicMin(shared + 2, v);
  atomicAdd(&wide[0], 1ull << 33);
  atomicAdd(out, v);
  atomicCAS(out + 1, v, -1);
  if (threadIdx.x == 0) out[6] = atomicExch(out + 2, v);
  atomicInc(reinterpret_cast<unsigned*>(out + 7), 99u);
  __syncthreads();
  if (threadIdx.x < 3) out[3 + threadIdx.x] = shared[threadIdx.x];
  if (threadIdx.x == 0) out[8] = static_cast<std::int32_t>(wide[0] >> 33);
}

// Reverses the words of a block by way of shared memory.
__global__ void reverse_words(const float* in, float* out) {
  FASTSCORE_DYNAMIC_SHARED(float, tile);
  const SharedPointer<float> own = tile + 4 * threadIdx.x;
  store_vec(own, load_vec<4>(in + 4 * threadIdx.x));
  __syncthreads();
  const auto vec = load_vec<4>(tile + 4 * (threads - 1 - threadIdx.x));
  store_vec(out + 4 * threadIdx.x, vec);
}

// ------------------------------------------------------------------------------------------------ cuda/device.h

// Per thread three sums over the block: a, b, and a^2 + b^2 by a second call of the same function.
template <class Real>
__global__ void sum_blocks(const Real* in, Real* out) {
  Real v[2] = {in[2 * threadIdx.x], in[2 * threadIdx.x + 1]};
  Real squares[2] = {v[0] * v[0], v[1] * v[1]};
  block_sum(v);
  block_sum(squares);
  Real* to = out + 3 * threadIdx.x;
  to[0] = v[0];
  to[1] = v[1];
  to[2] = block_sum(squares[0] / Real(blockDim.x)) + squares[1];
}

// Per thread the moments of all `count` numbers, each thread having added its own: those of the first half, and then
// those of the second merged to them.
__global__ void find_moments(const float* in, float* out, std::int64_t count) {
  Moments<float> m = {0, 0, 0};
  for (int half = 0; half < 2; ++half) {
    const std::int64_t last = half == 0 ? count / 2 : count;
    Moments<float> own = {0, 0, 0};
    for (std::int64_t i = half * (count / 2) + threadIdx.x; i < last; i += blockDim.x) add(own, in[i]);
    m = merge(m, block_merge(own));
  }
  float* to = out + 3 * threadIdx.x;
  to[0] = m.count;
  to[1] = m.mean;
  to[2] = m.m2;
}

// Element i: the words and normals of block i; `in` holds seed, draw and sample.
__global__ void draw(const std::int64_t* in, std::int64_t* out, std::int64_t count) {
  for (std::int64_t i = thread_number(); i < count; i += gridDim.x * threads) {
    const PhiloxBlock block = philox(in[0], static_cast<std::uint32_t>(in[1]), in[2], static_cast<std::uint32_t>(i));
    float floats[4];
    double doubles[4];
    normal4(block, floats);
    normal4(block, doubles);
    for (int k = 0; k < 4; ++k) {
      out[12 * i + k] = block.word[k];
      out[12 * i + 4 + k] = __float_as_uint(floats[k]);
      out[12 * i + 8 + k] = __double_as_longlong(doubles[k]);
    }
  }
}

template <class T>
const T* input(const ProbeArgs& args) {
  return static_cast<const T*>(args.in);
}
template <class T>
T* output(const ProbeArgs& args) {
  return static_cast<T*>(args.out);
}

}  // namespace

cudaError_t conversions(const ProbeArgs& args, cudaStream_t stream) {
  switch (args.number) {
    case 0:
      return launch(from_half, 2, threads, 0, stream, input<__half>(args), output<float>(args), args.count);
    case 1:
      return launch(to_half, 2, threads, 0, stream, input<float>(args), output<__half>(args), args.count);
    case 2:
      return launch(from_bf16, 2, threads, 0, stream, input<__nv_bfloat16>(args), output<float>(args), args.count);
    default:
      return launch(to_bf16, 2, threads, 0, stream, input<float>(args), output<__nv_bfloat16>(args), args.count);
  }
}
cudaError_t indices(const ProbeArgs& args, cudaStream_t stream) {
  return launch(write_indices, shape(args.grid), shape(args.block), 0, stream, output<std::int32_t>(args));
}
cudaError_t shuffles(const ProbeArgs& args, cudaStream_t stream) {
  return launch(shuffle_all, 1, 64, 0, stream, input<double>(args), output<double>(args), args.number, args.width);
}
cudaError_t votes(const ProbeArgs& args, cudaStream_t stream) {
  return launch(vote_all, 1, 64, 0, stream, input<std::int32_t>(args), output<std::int64_t>(args));
}
cudaError_t tickets(const ProbeArgs& args, cudaStream_t stream) {
  auto* next = static_cast<unsigned*>(const_cast<void*>(args.in));
  if (const cudaError_t error = cudaMemsetAsync(next, 0, sizeof *next, stream)) return error;
  return launch(take_ticket, 4, 32, 0, stream, next, output<std::int32_t>(args));
}
cudaError_t atomics(const ProbeArgs& args, cudaStream_t stream) {
  return launch(atomics_of_all_kinds, 1, threads, 0, stream, input<std::int32_t>(args), output<std::int32_t>(args));
}
// `number` bytes of dynamic shared memory; where `width` is 1, without asking for more than the default.
cudaError_t dynamic_shared(const ProbeArgs& args, cudaStream_t stream) {
  if (args.width == 0)
    return launch(reverse_words, 1, threads, static_cast<std::size_t>(args.number), stream, input<float>(args),
                  output<float>(args));
  cudaLaunchConfig_t config = {};
  config.gridDim = 1;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<std::size_t>(args.number);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, reverse_words, input<float>(args), output<float>(args));
}
cudaError_t block_sums(const ProbeArgs& args, cudaStream_t stream) {
  const auto block = static_cast<unsigned>(args.count);
  if (args.number == 0) return launch(sum_blocks<float>, 1, block, 0, stream, input<float>(args), output<float>(args));
  return launch(sum_blocks<double>, 1, block, 0, stream, input<double>(args), output<double>(args));
}
cudaError_t block_moments(const ProbeArgs& args, cudaStream_t stream) {
  const auto block = static_cast<unsigned>(args.number);
  return launch(find_moments, 1, block, 0, stream, input<float>(args), output<float>(args), args.count);
}
cudaError_t noise(const ProbeArgs& args, cudaStream_t stream) {
  return launch(draw, 2, threads, 0, stream, input<std::int64_t>(args), output<std::int64_t>(args), args.count);
}

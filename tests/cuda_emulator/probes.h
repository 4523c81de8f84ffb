// The arguments of the kernels in probes.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

struct ProbeArgs {
  const void* in;
  void* out;
  std::int64_t count;
  int number, width;
  std::uint32_t grid[3], block[3];
};

cudaError_t conversions(const ProbeArgs& args, cudaStream_t stream);
cudaError_t indices(const ProbeArgs& args, cudaStream_t stream);
cudaError_t shuffles(const ProbeArgs& args, cudaStream_t stream);
cudaError_t votes(const ProbeArgs& args, cudaStream_t stream);
cudaError_t tickets(const ProbeArgs& args, cudaStream_t stream);
cudaError_t atomics(const ProbeArgs& args, cudaStream_t stream);
cudaError_t dynamic_shared(const ProbeArgs& args, cudaStream_t stream);
cudaError_t block_sums(const ProbeArgs& args, cudaStream_t stream);
cudaError_t block_moments(const ProbeArgs& args, cudaStream_t stream);
cudaError_t noise(const ProbeArgs& args, cudaStream_t stream);

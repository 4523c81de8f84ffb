#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/hutchinson.h"

namespace fastscore::cuda {

// How many doubles args.scratch must hold.
std::int64_t hutchinson_scratch(const HutchinsonArgs& args);

// Enqueues the work on the stream; all pointers of `args` are device pointers.
cudaError_t hutchinson(const HutchinsonArgs& args, cudaStream_t stream);
cudaError_t hutchinson_probe(const HutchinsonProbeArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

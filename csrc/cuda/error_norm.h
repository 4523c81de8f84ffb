#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/error_norm.h"

namespace fastscore::cuda {

// How many doubles args.scratch must hold.
std::int64_t error_norm_scratch(const ErrorNormArgs& args);

// Enqueues the norms of all samples on the stream; all pointers of `args` are device pointers. At most 256 channels
// where `channels_last`.
cudaError_t error_norm(const ErrorNormArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

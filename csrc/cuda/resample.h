#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/resample.h"

namespace fastscore::cuda {

// Enqueues the filter on the stream; all pointers of `args` are device pointers.
cudaError_t resample(const ResampleArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

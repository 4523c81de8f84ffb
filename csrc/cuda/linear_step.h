#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/linear_step.h"

namespace fastscore::cuda {

// Enqueues out = a * x + sum_k b_k * h_k + s * z on the stream; all pointers of `args` are device pointers.
cudaError_t linear_step(const LinearStepArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

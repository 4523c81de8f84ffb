#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/philox_noise.h"

namespace fastscore::cuda {

// Enqueue noise on the stream; all pointers of `args` are device pointers.
cudaError_t philox_normal(const PhiloxArgs& args, cudaStream_t stream);
cudaError_t philox_rademacher(const PhiloxArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

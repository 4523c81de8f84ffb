#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/masked_replace.h"

namespace fastscore::cuda {

// Enqueues x = a * known + s * z where the mask is set on the stream; all pointers of `args` are device pointers.
cudaError_t masked_replace(const MaskedReplaceArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

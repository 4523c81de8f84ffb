#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/solver_step.h"

namespace fastscore::cuda {

// Enqueues the step on the stream; all pointers of `args` are device pointers. `out` may be x, `m` nothing that is
// read.
cudaError_t solver_step(const SolverStepArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

#pragma once

#include <cuda_runtime_api.h>

#include "fastscore/langevin_step.h"

namespace fastscore::cuda {

// How many doubles args.scratch must hold.
std::int64_t langevin_step_scratch(const LangevinStepArgs& args);

// Enqueues the step on the stream; all pointers of `args` are device pointers. `out` may be x.
cudaError_t langevin_step(const LangevinStepArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

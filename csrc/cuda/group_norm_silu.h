#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "fastscore/group_norm_silu.h"

namespace fastscore::cuda {

struct GroupNormSiluArgs : fastscore::GroupNormSiluArgs {
  // Where backward writes the gradient of a parameter, in the shape of the parameter; null where there is none.
  struct Gradients {
    void *weight = nullptr, *bias = nullptr, *add = nullptr, *scale = nullptr, *shift = nullptr;
  };

  bool channels_last = false;
  Gradients gradients;
  void* scratch = nullptr;  // see group_norm_silu_scratch
};

// Bytes of scratch that the call needs; of the forward and the jvp none where x is read once.
std::size_t group_norm_silu_scratch(const GroupNormSiluArgs& args);

// Enqueues the forward, the backward or the jvp on the stream; all pointers of `args` are device pointers.
cudaError_t group_norm_silu(const GroupNormSiluArgs& args, cudaStream_t stream);

}  // namespace fastscore::cuda

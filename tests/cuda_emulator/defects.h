// The arguments of the kernels in defects.cu.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

struct DefectArgs {
  float* data;  // `count` numbers on the device
  std::int64_t count;
  int defect;  // index of the kernel
  bool planted;
};

cudaError_t run_defect(const DefectArgs& args, cudaStream_t stream);

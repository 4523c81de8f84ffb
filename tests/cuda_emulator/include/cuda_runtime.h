// Stands in for the header of the CUDA toolkit: g++ compiles a .cu file against it, and the launch runs its threads on
// the CPU. What is not declared in this folder is not emulated; __shared__ is missing on purpose (see shared.h).
#pragma once

#define FASTSCORE_EMULATOR
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict

#include "cuda_runtime_api.h"
#include "emulator/functions.h"
#include "emulator/shared.h"
#include "emulator/threads.h"

#include "cuda/resample.h"

#include "emulator.h"

EMULATOR_ENTRY(resample, fastscore::ResampleArgs, fastscore::cuda::resample)

#include "cuda/linear_step.h"

#include "emulator.h"

EMULATOR_ENTRY(linear_step, fastscore::LinearStepArgs, fastscore::cuda::linear_step)

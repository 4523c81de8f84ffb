#include "cuda/solver_step.h"

#include "emulator.h"

EMULATOR_ENTRY(solver_step, fastscore::SolverStepArgs, fastscore::cuda::solver_step)

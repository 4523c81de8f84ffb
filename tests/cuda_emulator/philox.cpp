#include "cuda/philox.h"

#include "emulator.h"

EMULATOR_ENTRY(philox_normal, fastscore::PhiloxArgs, fastscore::cuda::philox_normal)
EMULATOR_ENTRY(philox_rademacher, fastscore::PhiloxArgs, fastscore::cuda::philox_rademacher)

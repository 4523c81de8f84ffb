#include "cuda/hutchinson.h"

#include "emulator.h"

EMULATOR_ENTRY(hutchinson, fastscore::HutchinsonArgs, fastscore::cuda::hutchinson)
EMULATOR_ENTRY(hutchinson_probe, fastscore::HutchinsonProbeArgs, fastscore::cuda::hutchinson_probe)

#include "cuda/masked_replace.h"

#include "emulator.h"

EMULATOR_ENTRY(masked_replace, fastscore::MaskedReplaceArgs, fastscore::cuda::masked_replace)

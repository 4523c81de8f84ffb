#include "cuda/error_norm.h"

#include "emulator.h"

EMULATOR_ENTRY(error_norm, fastscore::ErrorNormArgs, fastscore::cuda::error_norm)

EMULATOR_EXPORT std::int64_t error_norm_scratch(const void* args) {
  return fastscore::cuda::error_norm_scratch(*static_cast<const fastscore::ErrorNormArgs*>(args));
}

#include "cuda/group_norm_silu.h"

#include "emulator.h"

EMULATOR_ENTRY(group_norm_silu, fastscore::cuda::GroupNormSiluArgs, fastscore::cuda::group_norm_silu)

EMULATOR_EXPORT std::size_t group_norm_silu_scratch(const void* args) {
  return fastscore::cuda::group_norm_silu_scratch(*static_cast<const fastscore::cuda::GroupNormSiluArgs*>(args));
}

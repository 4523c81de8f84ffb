#include "cuda/langevin_step.h"

#include "emulator.h"

EMULATOR_ENTRY(langevin_step, fastscore::LangevinStepArgs, fastscore::cuda::langevin_step)

EMULATOR_EXPORT std::int64_t langevin_step_scratch(const void* args) {
  return fastscore::cuda::langevin_step_scratch(*static_cast<const fastscore::LangevinStepArgs*>(args));
}

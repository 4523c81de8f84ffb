#include "probes.h"

#include "emulator.h"

EMULATOR_ENTRY(run_conversions, ProbeArgs, conversions)
EMULATOR_ENTRY(run_indices, ProbeArgs, indices)
EMULATOR_ENTRY(run_shuffles, ProbeArgs, shuffles)
EMULATOR_ENTRY(run_votes, ProbeArgs, votes)
EMULATOR_ENTRY(run_tickets, ProbeArgs, tickets)
EMULATOR_ENTRY(run_atomics, ProbeArgs, atomics)
EMULATOR_ENTRY(run_dynamic_shared, ProbeArgs, dynamic_shared)
EMULATOR_ENTRY(run_block_sums, ProbeArgs, block_sums)
EMULATOR_ENTRY(run_block_moments, ProbeArgs, block_moments)
EMULATOR_ENTRY(run_noise, ProbeArgs, noise)

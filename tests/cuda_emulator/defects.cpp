#include "defects.h"

#include "emulator.h"

EMULATOR_ENTRY(defect, DefectArgs, run_defect)

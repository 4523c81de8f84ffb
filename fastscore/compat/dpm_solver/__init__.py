"""The classes of dpm-solver (``dpm_solver_pytorch.py``) on this engine: change the import, and steps are fused kernels.

    from fastscore.compat.dpm_solver import DPM_Solver, NoiseScheduleVP, model_wrapper

Signatures, network calls and numbers are those of the published file; dpm-solver itself is not needed.
"""

from fastscore.compat.dpm_solver.schedule import NoiseScheduleVP
from fastscore.compat.dpm_solver.solver import DPM_Solver
from fastscore.compat.dpm_solver.wrapper import model_wrapper

__all__ = ["DPM_Solver", "NoiseScheduleVP", "model_wrapper"]

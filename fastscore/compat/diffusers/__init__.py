"""Schedulers for the pipelines of diffusers, whose step is one fused operator.

Each is its stock scheduler with another `step`: same configuration, time grid, signatures, noise of the same generator
in the same order, and the same numbers up to rounding. Dynamic thresholding (with ``sample_max_value`` other than 1)
takes more operators than one. A scheduler is made from the stock one, and put in its place::

    pipeline.scheduler = FastDDIMScheduler.from_config(pipeline.scheduler.config)

`DDIMPipeline` makes a stock scheduler of whatever it is constructed with, so there the assignment is the only way.
"""

try:
    from diffusers import SchedulerMixin  # noqa: F401, a pipeline that is loaded looks for it beside its scheduler
except ImportError as error:
    raise ImportError("fastscore.compat.diffusers needs diffusers: pip install diffusers") from error

from fastscore.compat.diffusers.ddim import FastDDIMScheduler
from fastscore.compat.diffusers.ddpm import FastDDPMScheduler
from fastscore.compat.diffusers.dpm_solver import FastDPMSolverMultistepScheduler
from fastscore.compat.diffusers.euler import FastEulerAncestralDiscreteScheduler, FastEulerDiscreteScheduler
from fastscore.compat.diffusers.heun import FastHeunDiscreteScheduler
from fastscore.compat.diffusers.score_sde_ve import FastScoreSdeVeScheduler
from fastscore.compat.diffusers.unipc import FastUniPCMultistepScheduler

__all__ = [
    "FastDDIMScheduler",
    "FastDDPMScheduler",
    "FastDPMSolverMultistepScheduler",
    "FastEulerAncestralDiscreteScheduler",
    "FastEulerDiscreteScheduler",
    "FastHeunDiscreteScheduler",
    "FastScoreSdeVeScheduler",
    "FastUniPCMultistepScheduler",
]

for _name in __all__:  # what a pipeline writes down to be loaded again
    globals()[_name].__module__ = __name__

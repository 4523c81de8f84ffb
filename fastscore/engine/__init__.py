"""The CPU engine: a network traced once, and run as fused calls in memory planned beforehand.

`fastscore.accelerate(model, optimize="cpu")` puts it in front of a network.
"""

from fastscore.engine.module import Engine, untouched
from fastscore.engine.program import Program
from fastscore.engine.trace import UntraceableError

__all__ = ["Engine", "Program", "UntraceableError", "untouched"]

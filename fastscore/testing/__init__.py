"""What the tests and the benchmarks share: error budgets, inputs, traffic counters, analytic models, golden numbers.

Import the submodule that is needed; `golden` alone asks for more than torch (safetensors).
"""

from fastscore.testing.tolerances import ErrorReport, assert_error_within_budget, max_error, ulp_distance

__all__ = ["ErrorReport", "assert_error_within_budget", "max_error", "ulp_distance"]

"""The error estimate of an adaptive solver: the norm, per sample, of a linear combination over a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastscore import _backend, _checks, reference
from fastscore.ops._derivatives import needs_function

MAX_TERMS = 9
_COLUMNS = tuple(f"[{', '.join(f'c_{k + 1}' for k in range(count))}]" for count in range(MAX_TERMS + 1))
_OP = "error_norm"


def error_norm(
    terms: Sequence[Tensor],
    coefficients: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    atol: float,
    rtol: float,
    kind: str = "sum",
) -> Tensor:
    """Root mean square over each sample of e / scale, where e = sum_k c_k t_k, in one pass over the data.

    A step is accepted where the result is at most 1. The estimate of embedded Runge-Kutta pairs (Hairer, Norsett,
    Wanner 1993, "Solving ordinary differential equations I", eq. II.4.10 and 4.11: `terms` are the stages, u and v the
    state before and after), of the adaptive solver of Jolicoeur-Martineau et al. 2021, "Gotta go fast when generating
    data with score-based models", and of DPM-Solver-12 and -23 (Lu et al. 2022, appendix C): there `terms` are two
    solutions with coefficients 1 and -1.

    Args:
        terms: 1 <= K <= 9 tensors t_k of the shape, dtype and device of `u`.
        coefficients: [c_1 ... c_K], shape (K,) or one row per sample (B, K); float32, or float64 where `u` is float64;
            on the device of `u`.
        u: (B, ...), float32, float64, bfloat16 or float16; any memory format. May be among the terms, and so may
        v: of the shape, dtype and device of `u`.
        atol: absolute tolerance, in units of `u`, at least 0; and
        rtol: relative tolerance, at least 0; not both are 0.
        kind: "sum": scale = atol + rtol max(|u|, |v|), as Hairer et al. have it; "max": scale = max(atol, rtol max(|u|,
            |v|)), as the two solvers of diffusion models have it. Elementwise.

    Returns:
        (B,) in the dtype of `coefficients`; 0 for samples without elements. Elements are computed in that dtype and
        summed in float64. It is NaN or infinite where the sample has an element of `terms`, `u` or `v` that is not
        finite. e = 0 counts as 0 where the scale is 0. The bits do not depend on the batch, the number of threads or
        the memory format.

    Not differentiable: it decides on the size of a step. Inputs that require a gradient are detached.

    Raises:
        TypeError, ValueError: an argument does not fit; the message names it.
    """
    _check(terms, coefficients, u, v, atol, rtol, kind)
    asked = _backend.reference_asked(u.device)
    if needs_function(coefficients, u, v, *terms):
        terms = [term.detach() for term in terms]
        coefficients, u, v = coefficients.detach(), u.detach(), v.detach()
        asked = asked or torch._C._are_functorch_transforms_active()  # vmap has no rule for the op
    if asked:
        return reference.error_norm(terms, coefficients, u, v, atol=atol, rtol=rtol, kind=kind)
    return _backend.op("error_norm")(terms, coefficients, u, v, atol, rtol, kind)


def _check(
    terms: Sequence[Tensor], coefficients: Tensor, u: Tensor, v: Tensor, atol: float, rtol: float, kind: str
) -> None:
    _checks.is_state(_OP, "u", u)
    _checks.matches(_OP, "v", v, u, "u")
    if isinstance(terms, Tensor):
        _checks.wrong_type(_OP, "terms", "be a sequence of tensors", "a tensor")
    if not 1 <= len(terms) <= MAX_TERMS:
        _checks.wrong_value(_OP, "terms", f"hold 1 to {MAX_TERMS} tensors", len(terms))
    _checks.match(_OP, "terms", terms, u, "u")
    _checks.coefficients(_OP, coefficients, u, len(terms), _COLUMNS[len(terms)], "u")
    for name, value in (("atol", atol), ("rtol", rtol)):
        if isinstance(value, bool) or not isinstance(value, (float, int)):
            _checks.wrong_type(_OP, name, "be a float", type(value).__name__)
        if not 0 <= value < math.inf:
            _checks.wrong_value(_OP, name, "be finite and at least 0", value)
    if atol == 0 and rtol == 0:
        _checks.wrong_value(_OP, "atol", "be positive where rtol is 0", atol)
    if kind not in ("sum", "max"):
        _checks.wrong_value(_OP, "kind", "be 'sum' or 'max'", repr(kind))

"""The ops as torch knows them: schemas, fake versions, and the native library `fastscore._C`.

Schemas stand here and not in C++, so that an op is the same with and without the library. Kernels come from
TORCH_LIBRARY_IMPL in csrc; the reference stands in at CompositeExplicitAutograd for every device that has no kernel.
A fake version tells shape, dtype and strides, nothing else. Derivatives are in fastscore/ops.

To add an op: its schema, fake and reference below; csrc/cpu/<op>.cpp and csrc/cpu/simd/<op>.cpp (setup.py finds them);
fastscore/reference/<op>.py; fastscore/ops/<op>.py.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense

from fastscore.reference.linear_step import linear_step as _linear_step

_LIBRARY = torch.library.Library("fastscore", "FRAGMENT")


def define(schema: str, fake: Callable[..., Any], reference: Callable[..., Any]) -> None:
    """Registers one op: its schema ("name(Tensor x, ...) -> Tensor"), fake version and fallback."""
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastscore::{name}", fake, lib=_LIBRARY)


def like(x: Tensor) -> Tensor:
    """An uninitialized tensor as the kernels allocate it: strides of x where x is dense, else contiguous."""
    if is_non_overlapping_and_dense(x):
        return x.new_empty_strided(x.shape, x.stride())
    return x.new_empty(x.shape)


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("fastscore._C"), ""
    except ModuleNotFoundError as error:
        if error.name != "fastscore._C":
            raise
        return None, "the native library fastscore._C is not built"
    except ImportError as error:  # an undefined symbol: built against another torch
        raise ImportError(
            f"fastscore._C cannot be loaded; it was probably built against another torch than {torch.__version__}. "
            f"Rebuild it: pip install --no-build-isolation -e . (the loader says: {error})"
        ) from error


def build_info() -> dict[str, Any]:
    """What the native library was built with; empty if it is not built.

    Keys: "torch" (version), "isas" (compiled instruction sets), "isa" (the one in use), "openmp" (version of the
    standard, None without), "cuda" (version, None without), "cuda_archs" (str, None without).
    """
    return NATIVE.build_info() if NATIVE else {}


# ------------------------------------------------------------------------------------------------- linear_step

_LINEAR_STEP = "Tensor[] history, Tensor coefficients, Tensor? noise, Tensor? rng, Tensor? samples"


def _linear_step_(
    x: Tensor,
    history: list[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> None:
    x.copy_(_linear_step(x, history, coefficients, noise=noise, rng=rng, samples=samples))


def _linear_step_out(
    x: Tensor,
    history: list[Tensor],
    coefficients: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    samples: Tensor | None,
) -> Tensor:
    return _linear_step(x, history, coefficients, noise=noise, rng=rng, samples=samples)


define(f"linear_step(Tensor x, {_LINEAR_STEP}) -> Tensor", lambda x, *_: like(x), _linear_step_out)
define(f"linear_step_(Tensor(a!) x, {_LINEAR_STEP}) -> ()", lambda x, *_: None, _linear_step_)

# The library comes last: it fills in kernels for ops defined above.
NATIVE, WHY_NOT_NATIVE = _load()

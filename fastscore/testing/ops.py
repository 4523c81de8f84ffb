"""What tests of several ops share: what they are called with, which kernels ran, and what must not change a bit."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastscore import _backend, _library

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RNG = torch.tensor([2**40 + 17, 5])
ISAS = {"baseline": "default", "avx2": "avx2", "avx512": "avx512"}
"""The instruction sets of the native library, in rising order, as ATEN_CPU_CAPABILITY calls them."""

Rows = slice | Tensor
Bad = list[tuple[type[Exception], str, dict[str, Any]]]  # what is raised, what it says, the arguments that are wrong

# ------------------------------------------------------------------------------------------------ wrong arguments

# Wrong arguments of a step whose state has shape (2, 3); messages are patterns.
_X, _SAMPLES = torch.zeros(2, 3), torch.arange(2)
BAD_STATE: Bad = [
    (TypeError, "x must be a tensor, got list", {"x": [1.0]}),
    (TypeError, "x must be float32, float64, bfloat16 or float16, got torch.int64", {"x": _X.long()}),
    (ValueError, r"x must have a batch dimension, got shape \(\)", {"x": torch.tensor(1.0)}),
]
BAD_OUTPUT: Bad = [
    (ValueError, r"h must have the shape of x, \(2, 3\), got \(3, 2\)", {"h": torch.zeros(3, 2)}),
    (TypeError, "h must have the dtype of x, torch.float32, got torch.float64", {"h": _X.double()}),
    (ValueError, "h must be on the device of x, cpu, got meta", {"h": _X.to("meta")}),
]
BAD_HISTORY: Bad = [
    (TypeError, "history must be a sequence of tensors, got a tensor", {"history": _X}),
    (TypeError, r"history\[0\] must be a tensor, got float", {"history": [1.0]}),
    (TypeError, r"history\[1\] must have the dtype of x, torch.float32, got torch.int8", {"history": [_X, _X.char()]}),
    (ValueError, r"history\[0\] must have the shape of x, \(2, 3\), got \(3, 2\)", {"history": [_X.t()]}),
    (ValueError, r"history\[0\] must be on the device of x, cpu, got meta", {"history": [_X.to("meta")]}),
]
BAD_NOISE: Bad = [
    (ValueError, "noise must stand alone: either noise, or rng", {"noise": _X, "rng": RNG, "samples": _SAMPLES}),
    (ValueError, r"noise must have the shape of x, \(2, 3\), got \(2, 1\)", {"noise": _X[:, :1]}),
    (TypeError, "noise must be a tensor, got str", {"noise": "philox"}),
    (ValueError, "rng must be given with samples, got None", {"samples": _SAMPLES}),
    (ValueError, "samples must be given with rng, got None", {"rng": RNG}),
    (TypeError, r"rng must be an int64 tensor, \(seed, draw\), got tuple", {"rng": (0, 1), "samples": _SAMPLES}),
    (TypeError, r"rng must be an int64 tensor, .* got torch.int32", {"rng": RNG.int(), "samples": _SAMPLES}),
    (ValueError, r"rng must have shape \(2,\), .* got \(3,\)", {"rng": torch.arange(3), "samples": _SAMPLES}),
    (ValueError, r"samples must have shape \(2,\), .* got \(4,\)", {"rng": RNG, "samples": torch.arange(4)}),
    (ValueError, "samples must be on the device of x, cpu, got meta", {"rng": RNG, "samples": _SAMPLES.to("meta")}),
]


def bad_coefficients(row: Tensor, of: str = "x") -> Bad:
    """Wrong coefficients, made of a right row, beside a state named `of`; their shape is left to each op."""
    return [
        (TypeError, "coefficients must be a tensor, got list", {"coefficients": row.tolist()}),
        (TypeError, "coefficients must be torch.float32 for torch.float32 tensors", {"coefficients": row.double()}),
        (ValueError, f"coefficients must be on the device of {of}, cpu, got meta", {"coefficients": row.to("meta")}),
    ]


# ------------------------------------------------------------------------------------------------ what ran


def assert_one_native_launch(op: str, layout: str, run: Callable[[], object]) -> None:
    """`run` launches the op's native kernel once, not at all if the layout is empty or the reference is asked for."""
    native = _library.NATIVE
    assert native is not None
    expected = {} if layout == "empty" else {f"{op}.{_library.build_info()['isa']}": 1}
    native.reset_launches()
    run()
    assert native.launches() == expected
    with _backend.backend("reference"):
        run()
    assert native.launches() == expected


def why_not_on(isa: str) -> str | None:
    """Why the native library cannot use an instruction set here, or None if it can."""
    if isa not in _library.build_info()["isas"]:
        return f"{isa} is not compiled for this machine"
    best = {"AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return None if list(ISAS).index(isa) <= best else f"this CPU has no {isa}, or ATEN_CPU_CAPABILITY rules it out"


def run_on(isa: str, program: str, cases: object, folder: Path) -> tuple[list[Any], dict[str, int]]:
    """Compute in a process of its own, which uses the instruction set given.

    Args:
        isa: see `ISAS`.
        program: Python lines that set ``results``, a list, from ``cases``; torch and fastscore.ops are imported.
        cases: what `torch.save` takes.
        folder: where files may be written.

    Returns:
        The results, and how often each kernel was launched.
    """
    start = "import sys, torch, fastscore.ops\nfrom fastscore import _library\ncases = torch.load(sys.argv[1])\n"
    end = '\ntorch.save((results, _library.NATIVE.launches(), _library.build_info()["isa"]), sys.argv[2])\n'
    files = folder / "cases", folder / "results"
    torch.save(cases, files[0])
    environment = os.environ | {"ATEN_CPU_CAPABILITY": ISAS[isa]}
    subprocess.run([sys.executable, "-c", start + program + end, *files], env=environment, check=True)
    results, launches, used = torch.load(files[1])
    assert used == isa
    return results, launches


def run_op_on(isa: str, op: str, cases: list[tuple[Any, ...]], folder: Path) -> list[Any]:
    """What an op of fastscore.ops returns for cases (argument, ..., keywords), one launch each; see `run_on`."""
    program = f"results = [fastscore.ops.{op}(*arguments, **keywords) for *arguments, keywords in cases]"
    results, launches = run_on(isa, program, cases, folder)
    assert launches == {f"{op}.{isa}": len(cases)}
    return results


# ------------------------------------------------------------------------------------------------ to the last bit


def assert_bits_hold_by_threads_and_format(
    call: Callable[[Rows, str], Tensor],
    shape: tuple[int, ...],
    threads: Callable[[int], AbstractContextManager[None]],
) -> Tensor:
    """An op gives the same bits on one thread and two, and in every memory format.

    Args:
        call: the op on some rows of a batch, in a layout of `fastscore.testing.inputs`.
        shape: of the batch.
        threads: sets their number.

    Returns:
        The result.
    """
    everything = slice(None)
    with threads(1):
        want = call(everything, "contiguous")
    with threads(2):
        assert torch.equal(call(everything, "contiguous"), want), "threads"
    for layout in ("channels_last", "permuted", "sliced") if len(shape) == 4 else ("permuted", "sliced"):
        assert torch.equal(call(everything, layout), want), layout
    return want


def assert_bits_hold_by_batch(call: Callable[[Rows, str], Tensor], want: Tensor) -> None:
    """An op gives `want` (12, ...) to the bit in parts and in another order; for `call` see the function above."""
    for split in (1, 5):
        parts = [call(slice(i, i + split), "contiguous") for i in range(0, 12, split)]
        assert torch.equal(torch.cat(parts), want), "batch split"
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(call(order, "contiguous"), want[order]), "batch order"

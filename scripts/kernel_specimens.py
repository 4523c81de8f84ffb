"""The calls that compile_kernels.py compiles kernels for, and what is asked of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

STATE = (64, 3, 32, 32)


@dataclass(frozen=True)
class Specimen:
    """A call of a launcher, or a name of CUDA kernels.

    Attributes:
        name: what the report calls it.
        call: makes the call; run with fake CUDA tensors.
        memory_bound: whether memory bounds the kernel, so that it needs many threads in flight.
        vector: whether its global access must be 16 bytes wide.
        tensor_core: whether it must use tensor cores.
        threads: of a block, at most, for CUDA kernels; Triton knows its own.
        shared: bytes of dynamic shared memory that the launcher asks for, at most, for CUDA kernels.
    """

    name: str
    call: Callable[[], Any] = lambda: None
    memory_bound: bool = True
    vector: bool = True
    tensor_core: bool = False
    threads: int = 256
    shared: int = 0


def _kernel(op: str, name: str | None = None) -> Callable[..., Any]:
    return getattr(import_module(f"fastscore.kernels.{op}"), name or op)


def _state(dtype: torch.dtype, last: bool, shape: tuple[int, ...] = STATE) -> Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="cuda").to(memory_format=memory_format)


def _coefficients(count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="cuda")


def _drawn() -> tuple[Tensor, Tensor]:
    return torch.empty(2, dtype=torch.int64, device="cuda"), torch.empty(STATE[0], dtype=torch.int64, device="cuda")


def _linear_step(dtype: torch.dtype, last: bool, noise: str) -> None:
    x = _state(dtype, last)
    given = _state(dtype, last) if noise == "given" else None
    rng, samples = _drawn() if noise == "drawn" else (None, None)
    _kernel("linear_step")(x, [_state(dtype, last)] * 2, _coefficients(4, dtype), given, rng, samples)


def _masked_replace(dtype: torch.dtype, last: bool, noise: str) -> None:
    x, known = _state(dtype, last), _state(dtype, last)
    rng, samples = _drawn() if noise == "drawn" else (None, None)
    mask = _state(torch.bool, last)
    _kernel("masked_replace", "masked_replace_")(x, known, mask, _coefficients(2, dtype), None, rng, samples)


def _solver_step(dtype: torch.dtype, last: bool, noise: str) -> None:
    x, h, exponent = (_state(dtype, last) for _ in range(3))
    rng, samples = _drawn() if noise == "drawn" else (None, None)
    _kernel("solver_step")(x, h, [_state(dtype, last)], _coefficients(8, dtype), exponent, None, rng, samples)


def _langevin_step(dtype: torch.dtype, last: bool, noise: str) -> None:
    x, h = _state(dtype, last), _state(dtype, last)
    given = _state(dtype, last) if noise == "given" else None
    rng, samples = _drawn() if noise == "drawn" else (None, None)
    _kernel("langevin_step")(x, h, _coefficients(3, dtype), given, rng, samples, noise == "given")


def _error_norm(dtype: torch.dtype, last: bool, terms: int) -> None:
    """A Runge-Kutta pair of order 5, or the difference of two solutions, of which one is u."""
    tensors, v = [_state(dtype, last) for _ in range(terms)], _state(dtype, last)
    _kernel("error_norm")(tensors, _coefficients(terms, dtype), tensors[0], v, 1e-5, 1e-5, "sum")


def _philox(name: str, dtype: torch.dtype) -> None:
    _kernel("philox", name)(*_drawn(), STATE, dtype)


def _group_norm_silu(kind: str, dtype: torch.dtype, last: bool, shape: tuple[int, ...]) -> None:
    """Everything that there can be beside x, 32 groups."""
    x, other = _state(dtype, last, shape), _state(dtype, last, shape)
    channels, rows = torch.empty(shape[1], device="cuda"), torch.empty(shape[:2], device="cuda")
    parameters = channels, channels, rows, rows, rows
    statistics = (torch.empty(shape[0], 32, device="cuda"),) * 2
    run = _kernel("group_norm_silu", f"group_norm_silu_{kind}")
    if kind == "fwd":
        run(x, *parameters, 32, 1e-5, True)
    elif kind == "bwd":
        run(other, x, *parameters, *statistics, 32, True)
    else:
        run(x, *parameters, *statistics, other, *parameters, 32, True)


def _attention(kind: str, dtype: torch.dtype, width: int) -> None:
    """A residual and everything that moves, 256 rows."""
    q, k, v, residual, *tangents = (torch.empty(4, 8, 256, width, dtype=dtype, device="cuda") for _ in range(8))
    run = _kernel("attention", f"attention_{kind}")
    if kind == "fwd":
        run(q, k, v, residual, width**-0.5, 0.7, True)
    elif kind == "bwd":
        run(residual, q, k, v, tangents[0], torch.empty(4, 8, 256, device="cuda"), width**-0.5, 0.7)
    else:
        run(q, k, v, residual, *tangents, width**-0.5, 0.7, True)


def _resample(dtype: torch.dtype, last: bool, up: int, down: int) -> None:
    """The filters of NCSN++, 4 taps."""
    x = _state(dtype, last, (16, 128, 32, 32))
    size = [32 * up // down] * 2 if up != down else [33, 33]
    _kernel("resample")(x, torch.empty(4, 4, device="cuda"), up, down, 2 if up == 2 else 1, size, False)


def _hutchinson(dtype: torch.dtype, kind: str) -> None:
    """Four probes, drawn and then multiplied."""
    rng, samples = _drawn()
    products = torch.empty(4, *STATE, dtype=dtype, device="cuda")
    _kernel("hutchinson")(products, rng, samples, kind)
    _kernel("hutchinson", "hutchinson_probe")(rng, samples, None, 4, STATE, dtype, kind, False)


def _specimens() -> Iterator[Specimen]:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        for last in (False, True)[: 1 if dtype == torch.float64 else 2]:
            layout = "channels-last" if last else "contiguous"
            for noise in ("drawn", "none"):
                call = partial(_linear_step, dtype, last, noise)
                yield Specimen(f"linear_step {name} {layout} noise {noise}", call, vector=not last)
                call = partial(_masked_replace, dtype, last, noise)  # what is not marked is not touched: single words
                yield Specimen(f"masked_replace {name} {layout} noise {noise}", call, vector=False)
                call = partial(_solver_step, dtype, last, noise)
                yield Specimen(f"solver_step {name} {layout} noise {noise}", call, vector=not last)
            for noise in ("drawn", "given"):
                call = partial(_langevin_step, dtype, last, noise)
                yield Specimen(f"langevin_step {name} {layout} noise {noise}", call, vector=not last)
            for terms in (2, 8):
                call = partial(_error_norm, dtype, last, terms)
                yield Specimen(f"error_norm {name} {layout} {terms} terms", call, vector=not last)
        for op in ("philox_normal", "philox_rademacher"):
            yield Specimen(f"{op} {name}", partial(_philox, op, dtype))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for last in (False, True):
            layout = "channels-last" if last else "contiguous"
            for kind in ("fwd", "bwd", "jvp"):
                for shape in ((64, 128, 32, 32), (4, 128, 256, 256)):
                    call = partial(_group_norm_silu, kind, dtype, last, shape)
                    yield Specimen(f"group_norm_silu {kind} {name} {layout} {shape}", call)
            for up, down in ((2, 1), (1, 2), (1, 1)):
                call = partial(_resample, dtype, last, up, down)
                wide = last or (up == 2 and dtype == torch.float32)
                yield Specimen(f"resample {name} {layout} up {up} down {down}", call, vector=wide)
        for kind in ("fwd", "bwd", "jvp"):
            for width in (64, 256) if dtype == torch.float32 else (40, 64, 128, 160, 256, 512):
                call = partial(_attention, kind, dtype, width)
                cores = dtype == torch.bfloat16
                title = f"attention {kind} {name} head {width}"
                yield Specimen(title, call, memory_bound=False, tensor_core=cores)
        for kind in ("rademacher", "gaussian"):
            wide = kind == "rademacher" or dtype == torch.float32  # four normals of 16 bits are 8 bytes
            yield Specimen(f"hutchinson {name} {kind}", partial(_hutchinson, dtype, kind), vector=wide)


TRITON_SPECIMENS = [*_specimens()]

# Kernels that make a few numbers of a few numbers: neither bound by memory nor in need of wide access.
SECOND_STAGES = {
    *("langevin_rows_kernel", "error_norm_roots_kernel", "hutchinson_mean_kernel"),
    *("group_norm_silu_bwd_finish_kernel", "group_norm_silu_bwd_parameters_kernel"),
    "group_norm_silu_jvp_finish_kernel",
}
# Kernels of attention that multiply no matrices.
WITHOUT_PRODUCTS = {"attention_delta_kernel"}
# Faults on sm_90 that are still to be mended, by kernel and call.
KNOWN = {
    ("group_norm_silu_bwd_partials_kernel", "group_norm_silu bwd bfloat16 channels-last (4, 128, 256, 256)"): (
        "occupancy 25%"
    ),
    ("group_norm_silu_bwd_partials_kernel", "group_norm_silu bwd float32 channels-last (4, 128, 256, 256)"): (
        "occupancy 38%"
    ),
    ("resample_channels_last_kernel", "resample float32 channels-last up 1 down 2"): "occupancy 38%",
}
# Kernels that read, or write, single numbers and no tensor.
NUMBERS = {
    ("langevin_norms_kernel", "stores"),
    ("error_norm_kernel", "stores"),
    ("langevin_sums_kernel", "stores"),
    ("error_norm_sums_kernel", "stores"),
    ("philox_normal_kernel", "loads"),
    ("philox_rademacher_kernel", "loads"),
    ("hutchinson_kernel", "stores"),
    ("hutchinson_product_kernel", "stores"),
    ("group_norm_silu_fwd_partials_kernel", "stores"),
    ("group_norm_silu_bwd_partials_kernel", "stores"),
    ("group_norm_silu_jvp_partials_kernel", "stores"),
    ("hutchinson_probe_kernel", "loads"),
    ("attention_delta_kernel", "stores"),
}

# By a pattern of the kernel's name with its template arguments; the first that fits.
CUDA_SPECIMENS = {
    r"(linear_step|masked_replace|solver_step|langevin_(sums|step)|error_norm_sums)_kernel<.*true": Specimen(
        "whole words"
    ),
    r"(linear_step|masked_replace|solver_step|langevin_(sums|step)|error_norm_sums)_kernel<.*false": Specimen(
        "any layout", vector=False
    ),
    r"hutchinson_(product|probe)_kernel<.*true": Specimen("whole words"),
    r"hutchinson_(product|probe)_kernel<.*false": Specimen("any layout", vector=False),
    r"(langevin_norms|error_norm|hutchinson_mean)_kernel": Specimen("sums of sums, a warp to a sample", vector=False),
    r"philox_\w+_kernel<.*true": Specimen("whole words"),
    r"philox_\w+_kernel<.*false": Specimen("rows of any length", vector=False),
    r"resample_cells_kernel": Specimen("whole words"),
    r"resample_outputs_kernel": Specimen("any filter and size", vector=False),
    **{
        # Of all shapes one group of 512 channels asks for the most shared memory; the tests of the emulator launch it.
        rf"group_norm_silu_{kernel}_kernel<.*{pattern}>": Specimen(
            name, memory_bound=threads == 1024, vector=vector, threads=threads, shared=most[threads]
        )
        for kernel, most in (("forward", {1024: 45068, 512: 36888}), ("derivative", {1024: 72716, 512: 65560}))
        # float64 waits for arithmetic: an element takes 50 to 60 instructions, of which sm_89 and sm_120 do one where
        # they do 64 in float32. Half of the warps would need 64 registers a thread, which spill, or tiles of two thirds
        # the size; and the 6 or 7 loads of 16 bytes that a thread has under way are 48 KiB on a multiprocessor.
        for pattern, name, vector, threads in (
            ("double, [01]", "float64", True, 512),
            ("double, 2", "float64, no whole words", False, 512),
            ("2", "no whole words", False, 1024),
            ("[01]", "whole words", True, 1024),
        )
    },
    r"group_norm_silu_parameters_kernel": Specimen(
        "few sums, in float64", memory_bound=False, vector=False, threads=512
    ),
}

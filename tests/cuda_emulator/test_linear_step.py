"""csrc/cuda/linear_step.cu against the reference, in the emulator."""

import ctypes
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RNG = torch.tensor([2**40 + 17, 5])
# One element a sample, a tail, whole words, several blocks of threads.
SHAPES = ((3, 1, 1, 1), (2, 3, 7, 9), (2, 4, 4, 8), (3, 3, 33, 31))


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/linear_step.cu", "tests/cuda_emulator/linear_step.cpp")


@pytest.fixture(scope="module")
def step(kernel) -> Callable[..., Tensor]:
    """linear_step of fastscore.ops by the kernel, for operands that all have the layout of x."""

    class Args(ctypes.Structure):
        _fields_ = (
            *(("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64)),
            *(("x", kernel.Operand), ("terms", kernel.Operand * 7)),
            *(("term_count", ctypes.c_int), ("noise_given", ctypes.c_bool)),
            *(("coefficients", ctypes.c_void_p), ("coefficient_stride", ctypes.c_int64)),
            ("coefficient_count", ctypes.c_int),
            *(("rng", ctypes.c_void_p), ("samples", ctypes.c_void_p)),
            *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels")),
            ("dtype", ctypes.c_int32),
        )

    def run(
        x: Tensor,
        history: Sequence[Tensor],
        rows: Tensor,
        *,
        noise: Tensor | None = None,
        rng: Tensor | None = None,
        samples: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if out is None:
            out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)  # poisoned
        terms = [*history, noise] if noise is not None else list(history)
        channels = 1 if x[0].is_contiguous() else x.shape[1]
        args = Args(
            out=out.data_ptr(),
            out_stride=out.stride(0),
            x=kernel.Operand.of(x),
            terms=tuple(kernel.Operand.of(term) for term in terms),
            term_count=len(terms),
            noise_given=noise is not None,
            coefficients=rows.data_ptr(),
            coefficient_stride=rows.stride(0) if rows.ndim == 2 else 0,
            coefficient_count=rows.shape[-1],
            rng=None if rng is None else rng.data_ptr(),
            samples=None if samples is None else samples.data_ptr(),
            batch=x.shape[0],
            pixels=x[0].numel() // channels if x.numel() else 0,
            channels=channels,
            dtype=kernel.DTYPES[x.dtype],
        )
        kernel.linear_step(args)
        return out

    return run


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str = "contiguous",
    noise: str = "drawn",
    per_sample: bool = False,
) -> tuple[Tensor, list[Tensor], Tensor, dict[str, Tensor]]:
    x, *history = (make_input(shape, layout, dtype=dtype, seed=k) for k in range(3))
    rows = make_input((shape[0], 4) if per_sample else (4,), dtype=accumulation_dtype(dtype), seed=90)
    if noise == "drawn":
        return x, history, rows, {"rng": RNG, "samples": torch.arange(shape[0]) * 3 + 2**33}
    if noise == "given":
        return x, history, rows, {"noise": make_input(shape, layout, dtype=dtype, seed=91)}
    return x, history, rows, {}


def assert_parity(actual: Tensor, x: Tensor, history: list[Tensor], rows: Tensor, keywords: dict[str, Tensor]) -> None:
    plain = reference.linear_step(x, history, rows, **keywords)
    assert torch.isfinite(actual).all()
    if x.dtype == torch.float64:
        # Both round: each is within (products and sums) * u * sum |term| of the truth, a normal within 4 ulp.
        z = reference.linear_step(torch.zeros_like(x), [], rows.new_tensor([0.0, 1.0]), **keywords).abs()
        size = reference.linear_step(x.abs(), [h.abs() for h in history], rows.abs(), noise=z)
        assert ((actual - plain).abs() <= 2 * (2 * (len(history) + 2) + 4) * 2.0**-53 * size).all()
        return
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    oracle = reference.linear_step(x.double(), [h.double() for h in history], rows.double(), **in64)
    assert_error_within_budget(actual, oracle, plain, "linear_step")


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(step, shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for per_sample in (False, True):
            x, history, rows, keywords = make_case(shape, dtype, layout, noise, per_sample)
            assert_parity(step(x, history, rows, **keywords), x, history, rows, keywords)

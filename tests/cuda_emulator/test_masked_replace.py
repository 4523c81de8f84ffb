"""csrc/cuda/masked_replace.cu against the reference, in the emulator."""

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore.testing.inputs import apart, as_layout
from fastscore.testing.masked_replace import assert_parity, make_case

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# One element a sample, a tail, whole words, several blocks of threads.
SHAPES = ((3, 1, 1, 1), (2, 3, 7, 9), (2, 4, 4, 8), (3, 3, 33, 31))


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/masked_replace.cu", "tests/cuda_emulator/masked_replace.cpp")


@pytest.fixture(scope="module")
def replaced(kernel) -> Callable[..., Tensor]:
    """masked_replace_ of fastscore.ops by the kernel, on a copy of x, for operands that all have its layout."""

    class Args(ctypes.Structure):
        _fields_ = (
            *(("x", ctypes.c_void_p), ("x_stride", ctypes.c_int64)),
            *((name, kernel.Operand) for name in ("known", "mask", "noise")),
            *(("coefficients", ctypes.c_void_p), ("coefficient_stride", ctypes.c_int64)),
            *(("rng", ctypes.c_void_p), ("samples", ctypes.c_void_p)),
            *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels")),
            ("dtype", ctypes.c_int32),
        )

    def run(
        x: Tensor,
        known: Tensor,
        mask: Tensor,
        rows: Tensor,
        *,
        noise: Tensor | None = None,
        rng: Tensor | None = None,
        samples: Tensor | None = None,
        gap: int = 0,
    ) -> Tensor:
        out = apart(x, gap) if gap else x.clone()
        channels = 1 if x.numel() == 0 or x[0].is_contiguous() else x.shape[1]
        args = Args(
            x=out.data_ptr(),
            x_stride=out.stride(0),
            known=kernel.Operand.of(known),
            mask=kernel.Operand.of(mask),
            noise=kernel.Operand() if noise is None else kernel.Operand.of(noise),
            coefficients=rows.data_ptr(),
            coefficient_stride=rows.stride(0) if rows.ndim == 2 else 0,
            rng=None if rng is None else rng.data_ptr(),
            samples=None if samples is None else samples.data_ptr(),
            batch=x.shape[0],
            pixels=math.prod(x.shape[1:]) // channels,
            channels=channels,
            dtype=kernel.DTYPES[x.dtype],
        )
        kernel.masked_replace(args)
        return out

    return run


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(replaced, shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for per_sample in (False, True):
            case = make_case(shape, dtype, layout, noise, per_sample)
            assert_parity(replaced(*case[:4], **case[4]), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_strided_batch(replaced, layout: str, dtype: torch.dtype) -> None:
    """Samples that lie apart, by whole words and not, each operand with a stride of its own: the same bits."""
    x, known, mask, rows, keywords = make_case((3, 2, 4, 4), dtype, layout, per_sample=True)
    known, mask = torch.nan_to_num(known), mask[:1].expand_as(x)
    want = replaced(x, known, as_layout(mask.clone(), layout), rows, **keywords)
    for gap in (32, 5):
        assert torch.equal(replaced(x, apart(known, gap + 32), mask, rows, gap=gap, **keywords), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_grid_order_or_format(kernel, replaced, dtype: torch.dtype) -> None:
    x, known, mask, rows, keywords = make_case((5, 4, 62, 63), dtype, per_sample=True)
    want = replaced(x, known, mask, rows, **keywords)
    with kernel.multiprocessors(1):  # fewer blocks than are wanted: they loop
        assert torch.equal(replaced(x, known, mask, rows, **keywords), want)
    with kernel.order(1):
        assert torch.equal(replaced(x, known, mask, rows, **keywords), want)
    moved = [as_layout(tensor, "channels_last") for tensor in (x, known, mask)]
    assert torch.equal(replaced(*moved, rows, **keywords), want)


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_noise_of_weight_zero_is_not_looked_at(replaced, noise: str) -> None:
    x, known, mask, rows, keywords = make_case((3, 1, 5, 8), noise=noise)
    rows[1] = 0
    if noise == "given":
        keywords["noise"] = torch.full_like(x, torch.nan)
    assert torch.equal(replaced(x, known, mask, rows, **keywords), replaced(x, known, mask, rows))


def test_special_values_stay(replaced) -> None:
    """What is not known keeps its bits: zeros, subnormals, infinities; NaN stays NaN."""
    special = [0.0, -0.0, 1e-8, 6e-8, 6.2e-5, 65504.0, float("inf"), -float("inf"), float("nan")]
    for dtype in DTYPES:
        x = torch.tensor(special, dtype=torch.float64).to(dtype).repeat(1, 8)[..., None, None]
        mask = torch.zeros(x.shape, dtype=torch.bool)
        mask[:, ::7] = True
        row = torch.tensor([1.0, 0.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        out = replaced(x, torch.full_like(x, 3.0), mask, row)
        torch.testing.assert_close(out, torch.where(mask, 3.0, x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(replaced, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert replaced(x, x, x > 0, torch.ones(2)).shape == shape

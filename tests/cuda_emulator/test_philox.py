"""csrc/cuda/philox.cu against the reference, in the emulator."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore.testing import ulp_distance
from fastscore.testing.ops import DTYPES, RNG

SAMPLES = torch.tensor([0, 1, -1, 2**33 + 5, -(2**63)])
# One element, parts of a Philox block of normals, one more than the signs of a block and of a warp, whole words.
SIZES = (1, 3, 6, 129, 1025, 2048, 4104)
OPS = ("philox_normal", "philox_rademacher")


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/philox.cu", "tests/cuda_emulator/philox.cpp")


@pytest.fixture(scope="module")
def draw(kernel) -> Callable[..., Tensor]:
    class Args(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_void_p) for name in ("out", "rng", "samples")),
            *(("batch", ctypes.c_int64), ("size", ctypes.c_int64), ("dtype", ctypes.c_int32)),
        )

    def run(op: str, samples: Tensor, size: int, dtype: torch.dtype, rng: Tensor = RNG, offset: int = 0) -> Tensor:
        """The noise, in memory that begins `offset` elements after a multiple of 64 bytes; nothing else is written."""
        buffer = torch.empty(offset + len(samples) * size + 8, dtype=dtype)  # poisoned
        out = buffer[offset : offset + len(samples) * size].view(len(samples), size)
        args = Args(out.data_ptr(), rng.data_ptr(), samples.data_ptr(), len(samples), size, kernel.DTYPES[dtype])
        getattr(kernel, op)(args)
        assert buffer[:offset].isnan().all()
        assert buffer[offset + out.numel() :].isnan().all()
        return out

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_signs_are_the_bits_of_the_reference(draw, size: int, dtype: torch.dtype) -> None:
    for seed in (0, -1, 2**40 + 17, -(2**63)):
        for number in (0, 2**32 - 1):
            rng = torch.tensor([seed, number])
            want = reference.philox_rademacher((5, size), rng, SAMPLES, dtype)
            assert torch.equal(draw("philox_rademacher", SAMPLES, size, dtype, rng), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_normals_are_within_4_ulp_of_the_reference(draw, size: int, dtype: torch.dtype) -> None:
    want = reference.philox_normal((5, size), RNG, SAMPLES, dtype)
    out = draw("philox_normal", SAMPLES, size, dtype)
    assert int(ulp_distance(out, want).max()) <= (4 if dtype in (torch.float32, torch.float64) else 1)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_grid_order_alignment_or_batch(kernel, draw, op: str, dtype: torch.dtype) -> None:
    samples = torch.arange(40) * 3 + 2**33
    for size in (1024, 999):
        want = draw(op, samples, size, dtype)
        with kernel.multiprocessors(1), kernel.order(1):
            assert torch.equal(draw(op, samples, size, dtype), want)
        assert torch.equal(draw(op, samples, size, dtype, offset=1), want)
        assert torch.equal(draw(op, samples[7:8], size, dtype), want[7:8])


@pytest.mark.parametrize("op", OPS)
def test_blocks_loop(kernel, draw, op: str) -> None:
    samples = torch.arange(300)
    with kernel.multiprocessors(1):  # 32 blocks of 8 warps
        few = draw(op, samples, 260, torch.float32)
    assert torch.equal(few, draw(op, samples, 260, torch.float32))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("rows", "size"), [(0, 5), (2, 0)])
def test_nothing_to_do(draw, op: str, rows: int, size: int) -> None:
    draw(op, SAMPLES[:rows], size, torch.float32)

"""csrc/cuda/resample.cu against the reference, in the emulator."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.reference.resample import resampled_size
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "channels_last")
# With four taps: those that have cells of their own, and others.
MODES = [(2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2)), (1, 1, (1, 1)), (2, 1, (3, 6)), (1, 2, (0, 5)), (1, 1, (5, 0))]
# Whole words and several cells in both formats; words that are not whole; one pixel.
SHAPES = [(2, 8, 6, 16), (1, 16, 5, 8), (2, 3, 7, 9), (1, 1, 2, 2)]


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/resample.cu", "tests/cuda_emulator/resample.cpp")


@pytest.fixture(scope="module")
def run(kernel) -> Callable[..., Tensor]:
    """resample of fastscore.ops by the kernel."""

    class Args(ctypes.Structure):
        _fields_ = (
            *(("x", ctypes.c_void_p), ("x_stride", ctypes.c_int64)),
            *(("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64)),
            *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width")),
            ("channels_last", ctypes.c_bool),
            *(("taps", ctypes.c_void_p), ("length", ctypes.c_int), ("flip", ctypes.c_bool)),
            *(("up", ctypes.c_int), ("down", ctypes.c_int), ("before", ctypes.c_int64), ("dtype", ctypes.c_int32)),
        )

    def call(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int], flip: bool = False) -> Tensor:
        batch, channels, height, width = x.shape
        size = resampled_size(x, taps, up, down, padding)
        last = not x[0].is_contiguous()
        if last:  # poisoned
            out = torch.empty(batch, *size, channels, dtype=x.dtype).movedim(-1, 1)
        else:
            out = torch.empty(batch, channels, *size, dtype=x.dtype)
        args = Args(
            x=x.data_ptr(),
            x_stride=x.stride(0),
            out=out.data_ptr(),
            out_stride=out.stride(0),
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            out_height=size[0],
            out_width=size[1],
            channels_last=last,
            taps=taps.data_ptr(),
            length=taps.shape[0],
            flip=flip,
            up=up,
            down=down,
            before=padding[0],
            dtype=kernel.DTYPES[x.dtype],
        )
        kernel.resample(args)
        return out

    return call


def make_taps(dtype: torch.dtype, length: int = 4) -> Tensor:
    """Neither symmetric nor separable."""
    return make_input((length, length), dtype=accumulation_dtype(dtype), seed=9)


def assert_parity(actual: Tensor, x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int]) -> None:
    options = {"up": up, "down": down, "padding": padding}
    plain = reference.resample(x, taps, **options)
    assert torch.isfinite(actual).all()
    assert actual.stride() == plain.stride()
    if x.dtype == torch.float64:  # as many roundings as there are taps, in both
        size = reference.resample(x.abs(), taps.abs(), **options)
        assert ((actual - plain).abs() <= 2 * taps.numel() * 2.0**-53 * size).all()
    else:
        oracle = reference.resample(x.double(), taps.double(), **options)
        assert_error_within_budget(actual, oracle, plain, "resample")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity(run, shape: tuple[int, ...], mode: tuple[int, int, tuple[int, int]], dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x, taps = make_input(shape, layout, dtype=dtype), make_taps(dtype)
        assert_parity(run(x, taps, *mode), x, taps, *mode)
        turned = run(x, taps.flip(0, 1).contiguous(), *mode, flip=True)
        assert torch.equal(turned, run(x, taps, *mode))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_parity_by_length(run, length: int) -> None:
    for layout in LAYOUTS:
        x, taps = make_input((2, 4, 5, 8), layout), make_taps(torch.float32, length)
        for mode in ((2, 1, (length, length)), (1, 2, (length, 0)), (1, 1, (length // 2, length))):
            assert_parity(run(x, taps, *mode), x, taps, *mode)


def test_samples_apart_and_not_aligned(run) -> None:
    """Samples of a larger batch, and such that begin in the middle of a word."""
    for layout in LAYOUTS:
        taps = make_taps(torch.float32)
        whole = make_input((5, 4, 6, 8), layout)
        memory = torch.empty(whole.numel() + 1)
        moved = memory[1:].as_strided(whole.shape, whole.stride(), 1).copy_(whole)
        for mode in MODES[:4]:
            assert_parity(run(whole[::2], taps, *mode), whole[::2], taps, *mode)
            assert torch.equal(run(moved, taps, *mode), run(whole, taps, *mode))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_batch_or_the_grid(kernel, run, layout: str) -> None:
    x, taps = make_input((3, 8, 10, 24), layout), make_taps(torch.float32)
    for mode in MODES[:5]:
        whole = run(x, taps, *mode)
        for b in range(3):
            assert torch.equal(run(x[b : b + 1], taps, *mode)[0], whole[b])
        with kernel.multiprocessors(1), kernel.order(7):
            assert torch.equal(run(x, taps, *mode), whole)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cells_compute_what_single_outputs_do(run, layout: str) -> None:
    """A filter of five taps, the last of them zero, has no cells."""
    x, taps = make_input((2, 8, 6, 16), layout), make_taps(torch.float32)
    longer = torch.zeros(5, 5)
    longer[1:, 1:] = taps  # the convolution turns it: the new row and column come last
    for up, down, (before, after) in MODES[:4]:
        single = run(x, longer, up, down, (before, after + 1))
        assert torch.equal(single, run(x, taps, up, down, (before, after)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_are_not_multiplied(run, layout: str) -> None:
    x = make_input((1, 8, 4, 8), layout).zero_()
    x[0, 1, 2, 2] = float("inf")
    for taps in (torch.ones(4, 4), torch.ones(3, 3)):
        for mode in ((2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2))):
            out = run(x, taps, *mode)
            assert not torch.isnan(out).any()
            assert torch.equal(
                torch.isinf(out),
                reference.resample(x.isinf().float(), taps, up=mode[0], down=mode[1], padding=mode[2]) > 0.5,
            )

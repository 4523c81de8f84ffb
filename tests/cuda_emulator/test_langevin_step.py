"""csrc/cuda/langevin_step.cu against the reference, in the emulator."""

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import apart, as_layout, make_input
from fastscore.testing.ops import DTYPES, RNG

# One element a sample, a tail, whole words, rows of less than four pixels, several tiles with and without tails, more
# channels than are told apart.
SHAPES = ((3, 1, 1, 1), (2, 3, 7, 9), (2, 4, 4, 8), (2, 5, 1, 3), (2, 5, 33, 31), (1, 4, 32, 36), (2, 300, 2, 3))


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/langevin_step.cu", "tests/cuda_emulator/langevin_step.cpp")


@pytest.fixture(scope="module")
def step(kernel) -> Callable[..., Tensor]:
    """langevin_step of fastscore.ops by the kernels, for operands that all have the layout of x."""

    class Args(ctypes.Structure):
        _fields_ = (
            *(("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64)),
            *((name, kernel.Operand) for name in ("x", "h", "noise")),
            *(("coefficients", ctypes.c_void_p), ("coefficient_stride", ctypes.c_int64)),
            ("per_sample", ctypes.c_bool),
            *(("rng", ctypes.c_void_p), ("samples", ctypes.c_void_p)),
            *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels")),
            ("dtype", ctypes.c_int32),
            *(("planes", ctypes.c_int64), ("scratch", ctypes.c_void_p)),
        )

    kernel.library.langevin_step_scratch.restype = ctypes.c_int64

    def run(
        x: Tensor,
        h: Tensor,
        rows: Tensor,
        *,
        noise: Tensor | None = None,
        rng: Tensor | None = None,
        samples: Tensor | None = None,
        per_sample: bool = True,
        out: Tensor | None = None,
    ) -> Tensor:
        out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) if out is None else out  # poisoned
        channels = 1 if x[:1].is_contiguous() else x.shape[1]
        args = Args(
            out=out.data_ptr(),
            out_stride=out.stride(0),
            **{name: kernel.Operand.of(t) for name, t in (("x", x), ("h", h), ("noise", noise)) if t is not None},
            coefficients=rows.data_ptr(),
            coefficient_stride=rows.stride(0) if rows.ndim == 2 else 0,
            per_sample=per_sample,
            **{name: t.data_ptr() for name, t in (("rng", rng), ("samples", samples)) if t is not None},
            batch=x.shape[0],
            pixels=x.numel() // (x.shape[0] * channels) if x.numel() else 0,
            channels=channels,
            dtype=kernel.DTYPES[x.dtype],
            planes=x.shape[1] if x.shape[1] <= 256 else 1,
        )
        scratch = torch.empty(kernel.library.langevin_step_scratch(ctypes.byref(args)), dtype=torch.float64)
        args.scratch = scratch.data_ptr()
        kernel.langevin_step(args)
        return out

    return run


Case = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    noise: str = "drawn",
    rows: bool = False,
) -> Case:
    """Arguments (x, h, coefficients, keywords) of a call whose step is as large as its state."""
    x, h = (make_input(shape, layout, dtype=dtype, seed=seed) for seed in (0, 1))
    coefficients = torch.tensor([0.3, -1.2, 0.4], dtype=torch.float64)
    if rows:
        coefficients = coefficients * make_input((shape[0], 3), dtype=torch.float64, scale=0.1, mean=1, seed=90)
    if noise == "given":
        keywords = {"noise": make_input(shape, layout, dtype=dtype, seed=91)}
    else:
        keywords = {"rng": RNG, "samples": torch.arange(shape[0]) * 3 + 2**33}
    return x, h, coefficients.to(accumulation_dtype(dtype)), keywords


def assert_parity(step: Callable[..., Tensor], case: Case, per_sample: bool) -> None:
    x, h, rows, keywords = case
    actual = step(x, h, rows, **keywords, per_sample=per_sample)
    plain = reference.langevin_step(x, h, rows, **keywords, per_sample=per_sample)
    if x.dtype == torch.float64:
        # The oracle rounds as much as the kernel: 5 roundings of the sum, 4 units of a normal, and less than 7 of the
        # step, whose norms are roots of sums of squares, where rounding errors average out.
        size = x.abs() + (plain - x).abs() * 4 + 1
        assert ((actual - plain).abs() <= 2 * 16 * 2.0**-53 * size).all()
        return
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    oracle = reference.langevin_step(x.double(), h.double(), rows.double(), **in64, per_sample=per_sample)
    assert_error_within_budget(actual, oracle, plain, "langevin_step")


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(step, shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last") if shape[1] <= 256 else ("contiguous",):
        for rows, per_sample in ((False, True), (True, False)):
            assert_parity(step, make_case(shape, dtype, layout, noise, rows), per_sample)


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(((3, 4, 32, 36), dtype) for dtype in (torch.float32, torch.bfloat16)),  # two tiles of whole words
        *(((3, 3, 37, 37), dtype) for dtype in (torch.float32, torch.float16)),  # two tiles, the second of 9 pixels
        *(((3, 2, 4, 5), dtype) for dtype in DTYPES),
    ],
)
def test_bits_do_not_depend_on_grid_order_format_alignment_or_batch(
    kernel, step, shape: tuple[int, ...], dtype: torch.dtype, noise: str
) -> None:
    x, h, rows, keywords = make_case(shape, dtype, noise=noise, rows=True)
    want = step(x, h, rows, **keywords)
    together = step(x, h, rows, **keywords, per_sample=False)
    with kernel.multiprocessors(1), kernel.order(1):
        assert torch.equal(step(x, h, rows, **keywords), want)
        assert torch.equal(step(x, h, rows, **keywords, per_sample=False), together)

    def moved(move: Callable[[Tensor], Tensor], per_sample: bool = True) -> Tensor:
        case = {k: move(v) if v.is_floating_point() else v for k, v in keywords.items()}
        return step(move(x), move(h), rows, **case, per_sample=per_sample)

    assert torch.equal(moved(lambda t: as_layout(t, "channels_last")), want)
    assert torch.equal(moved(lambda t: apart(t, 3)), want)
    assert torch.equal(moved(lambda t: apart(as_layout(t, "channels_last"), 32), per_sample=False), together)
    alone = {k: v if k == "rng" else v[2:] for k, v in keywords.items()}
    assert torch.equal(step(x[2:], h[2:], rows[2:], **alone), want[2:])


def test_blocks_loop(kernel, step) -> None:
    """On a device of one multiprocessor, which takes 32 blocks: of one tile, of 8 samples, of 256 runs."""
    for shape, per_sample in (((260, 1, 1, 1), False), ((2, 1, 126, 132), True)):
        x, h, rows, keywords = make_case(shape)
        want = step(x, h, rows, **keywords, per_sample=per_sample)
        with kernel.multiprocessors(1):
            assert torch.equal(step(x, h, rows, **keywords, per_sample=per_sample), want)


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_no_score_no_step(step, noise: str) -> None:
    x, h, _, keywords = make_case((3, 2, 4, 5), noise=noise)
    rows = torch.tensor([0.0, 1.0, 0.1])
    h[1] = 0
    each = step(x, h, rows, **keywords)
    assert torch.equal(each[1], x[1])
    assert not torch.isclose(each[0], x[0]).all()
    together = step(x, h, rows, **keywords, per_sample=False)
    assert torch.isfinite(together).all()
    assert not torch.isclose(together[1], x[1]).any()  # only the mean has to differ from 0
    assert torch.equal(step(x, torch.zeros_like(h), rows, **keywords, per_sample=False), x)
    assert torch.equal(step(x, h, torch.tensor([0.0, 1.0, 0.0]), **keywords), x)


def test_nan_stays_in_its_sample(step) -> None:
    for noise in ("drawn", "given"):
        for which in range(3 if noise == "given" else 2):
            case = make_case((3, 2, 4, 5), noise=noise)
            (*case[:2], case[3].get("noise"))[which][1, 1, 2, 3] = math.nan
            bad = torch.isnan(step(*case[:3], **case[3])).flatten(1)
            assert bad.any(1).tolist() == [False, True, False]
            assert bad[1].all()
            assert torch.isnan(step(*case[:3], **case[3], per_sample=False)).all()


def test_in_place(step) -> None:
    for dtype in DTYPES:
        for shape in ((3, 2, 5, 7), (3, 2, 4, 8)):
            x, h, rows, keywords = make_case(shape, dtype)
            want = step(x, h, rows, **keywords)
            assert torch.equal(step(x, h, rows, **keywords, out=x), want)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(step, shape: tuple[int, ...]) -> None:
    x, h, rows, keywords = make_case(shape)
    for per_sample in (False, True):
        assert step(x, h, rows, **keywords, per_sample=per_sample).shape == shape

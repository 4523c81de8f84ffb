"""csrc/cuda/error_norm.cu against the reference, in the emulator."""

import ctypes
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import apart, as_layout, make_input
from fastscore.testing.ops import DTYPES

# One element a sample, a tail, whole words, rows of less than four pixels, several tiles with and without tails, more
# channels than are told apart.
SHAPES = ((3, 1, 1, 1), (2, 3, 7, 9), (2, 4, 4, 8), (2, 5, 1, 3), (2, 5, 33, 31), (2, 4, 32, 36), (2, 300, 2, 3))
KINDS = ("sum", "max")


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/error_norm.cu", "tests/cuda_emulator/error_norm.cpp")


@pytest.fixture(scope="module")
def norm(kernel) -> Callable[..., Tensor]:
    """error_norm of fastscore.ops by the kernels, for operands that all have the layout of u."""

    class Args(ctypes.Structure):
        _fields_ = (
            *(("terms", kernel.Operand * 9), ("u", kernel.Operand), ("v", kernel.Operand)),
            ("term_count", ctypes.c_int),
            *(("coefficients", ctypes.c_void_p), ("coefficient_stride", ctypes.c_int64)),
            *(("atol", ctypes.c_double), ("rtol", ctypes.c_double), ("larger", ctypes.c_bool)),
            *((name, ctypes.c_int64) for name in ("batch", "channels", "pixels")),
            *(("channels_last", ctypes.c_bool), ("dtype", ctypes.c_int32)),
            *(("out", ctypes.c_void_p), ("scratch", ctypes.c_void_p)),
        )

    kernel.library.error_norm_scratch.restype = ctypes.c_int64

    def run(
        terms: Sequence[Tensor], rows: Tensor, u: Tensor, v: Tensor, *, atol: float, rtol: float, kind: str = "sum"
    ) -> Tensor:
        out = rows.new_empty(u.shape[0])  # poisoned
        args = Args(
            terms=tuple(kernel.Operand.of(term) for term in terms),
            u=kernel.Operand.of(u),
            v=kernel.Operand.of(v),
            term_count=len(terms),
            coefficients=rows.data_ptr(),
            coefficient_stride=rows.stride(0) if rows.ndim == 2 else 0,
            atol=atol,
            rtol=rtol,
            larger=kind == "max",
            batch=u.shape[0],
            channels=u.shape[1],
            pixels=u.shape[2] * u.shape[3],
            channels_last=not u[:1].is_contiguous(),
            dtype=kernel.DTYPES[u.dtype],
            out=out.data_ptr(),
        )
        scratch = torch.empty(kernel.library.error_norm_scratch(ctypes.byref(args)), dtype=torch.float64)
        args.scratch = scratch.data_ptr()
        kernel.error_norm(args)
        return out

    return run


Case = tuple[list[Tensor], Tensor, Tensor, Tensor, dict]


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    terms: int = 3,
    rows: bool = False,
    kind: str = "sum",
) -> Case:
    """Arguments (terms, coefficients, u, v, keywords) of a call whose result is of order one."""
    stages = [make_input(shape, layout, dtype=dtype, seed=k) for k in range(terms)]
    u, v = (make_input(shape, layout, dtype=dtype, scale=0.5, mean=1.0, seed=seed) for seed in (50, 51))
    coefficients = make_input((len(u), terms) if rows else (terms,), dtype=accumulation_dtype(dtype), seed=90)
    return stages, coefficients, u, v, {"atol": 0.5, "rtol": 0.4, "kind": kind}


def every_tensor(case: Case, move: Callable[[Tensor], Tensor]) -> Case:
    terms, rows, u, v, keywords = case
    return [move(term) for term in terms], rows, move(u), move(v), keywords


def call(function: Callable[..., Tensor], case: Case) -> Tensor:
    *arguments, keywords = case
    return function(*arguments, **keywords)


def assert_parity(actual: Tensor, case: Case) -> None:
    plain = call(reference.error_norm, case)
    terms, rows, u, v, keywords = case
    if u.dtype == torch.float64:
        # The oracle rounds as much as the kernel: both make 2 K roundings of the sum and 4 of the scale and quotient,
        # relative to sum_k |c_k t_k|, and a few in a sum of squares, where rounding errors average out.
        size = reference.error_norm([t.abs() for t in terms], rows.abs(), u, v, **keywords)
        assert actual.dtype == torch.float64
        assert ((actual - plain).abs() <= 2 * (2 * len(terms) + 8) * 2.0**-53 * size).all()
        return
    terms, rows, u, v, keywords = every_tensor(case, Tensor.double)
    assert_error_within_budget(
        actual, reference.error_norm(terms, rows.double(), u, v, **keywords), plain, "error_norm"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(norm, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    for layout in ("contiguous", "channels_last") if shape[1] <= 256 else ("contiguous",):
        for rows in (False, True):
            case = make_case(shape, dtype, layout, rows=rows, kind=kind)
            assert_parity(call(norm, case), case)


@pytest.mark.parametrize("terms", range(1, 10))
def test_terms(norm, terms: int) -> None:
    for dtype in DTYPES:
        case = make_case((3, 1, 25, 20), dtype, terms=terms, rows=True)
        assert_parity(call(norm, case), case)


@pytest.mark.parametrize(("atol", "rtol"), [(0.0, 1e-2), (1e-3, 0.0), (1e-5, 1e-3), (2.0, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_tolerances(norm, atol: float, rtol: float, kind: str) -> None:
    for mean in (0.0, 1e3):
        terms, rows, u, v, _ = make_case((3, 3, 6, 6))
        u += mean
        case = terms, rows, u, v, {"atol": atol, "rtol": rtol, "kind": kind}
        assert_parity(call(norm, case), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 4, 32, 36), (4, 3, 37, 37), (4, 2, 3, 5)])
def test_bits_do_not_depend_on_grid_order_format_alignment_or_batch(
    kernel, norm, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    case = make_case(shape, dtype, rows=True)
    want = call(norm, case)
    with kernel.multiprocessors(1), kernel.order(1):
        assert torch.equal(call(norm, case), want)
    for move in (
        lambda t: as_layout(t, "channels_last"),
        lambda t: apart(t, 3),
        lambda t: apart(as_layout(t, "channels_last"), 32),
    ):
        assert torch.equal(call(norm, every_tensor(case, move)), want)
    terms, rows, u, v, keywords = every_tensor(case, lambda t: t[2:])
    assert torch.equal(norm(terms, rows[2:], u, v, **keywords), want[2:])


def test_blocks_loop(kernel, norm) -> None:
    case = make_case((260, 1, 1, 2))
    want = call(norm, case)
    with kernel.multiprocessors(1):  # 32 blocks of one tile, or 8 samples
        assert torch.equal(call(norm, case), want)
    assert_parity(want, case)


def test_more_tiles_than_lanes(norm) -> None:
    """34 tiles, of 16 pixels: a warp adds them up."""
    case = make_case((1, 171, 23, 23), terms=1)
    assert_parity(call(norm, case), case)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["term", "u", "v"])
def test_what_is_not_finite_is_not_lost(norm, which: str, kind: str, bad: float) -> None:
    for dtype in DTYPES:
        for atol, rtol in ((0.5, 0.4), (0.5, 0.0), (0.0, 0.4)):
            terms, rows, u, v, _ = make_case((3, 2, 4, 5), dtype)
            {"term": terms[1], "u": u, "v": v}[which][1, 1, 2, 3] = bad
            out = norm(terms, rows, u, v, atol=atol, rtol=rtol, kind=kind)
            assert torch.isfinite(out).tolist() == [True, False, True]


def test_no_error_is_none_at_any_scale(norm) -> None:
    for kind in KINDS:
        zeros = torch.zeros(2, 1, 2, 3)
        assert norm([zeros], torch.ones(1), zeros, zeros, atol=0.0, rtol=0.1, kind=kind).tolist() == [0.0, 0.0]
        error = zeros.clone()
        error[1, 0, 0, 1] = 1e-30
        out = norm([error], torch.ones(1), zeros, zeros, atol=0.0, rtol=0.1, kind=kind)
        assert out.tolist() == [0.0, math.inf]


def test_sums_are_double(norm) -> None:
    """2^16 squares of 1 and one of 2^16: lost in a float, which has 24 bits."""
    ones = torch.ones(1, 1, 256, 256)
    ones[0, 0, 0, 0] = 2.0**14
    out = norm([ones], torch.ones(1), torch.zeros_like(ones), torch.zeros_like(ones), atol=1.0, rtol=0.0)
    assert out.item() == torch.tensor(math.sqrt((2**28 + 2**16 - 1) / 2**16)).item()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(norm, shape: tuple[int, ...]) -> None:
    case = make_case(shape, rows=True)
    out = call(norm, case)
    assert out.shape == shape[:1]
    assert out.isnan().all()  # the mean of nothing: the caller has zeros at hand

"""csrc/cuda/solver_step.cu against the reference, in the emulator."""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import apart, as_layout, make_input
from fastscore.testing.ops import DTYPES, RNG

# One element a sample, a tail, whole words, rows of less than four pixels, several blocks of threads.
SHAPES = ((3, 1, 1, 1), (2, 3, 7, 9), (2, 4, 4, 8), (2, 5, 1, 3), (3, 3, 33, 31))
C, S, E = 2, -2, -1  # where c, s and e stand in a row

Case = tuple[Tensor, Tensor, list[Tensor], Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/solver_step.cu", "tests/cuda_emulator/solver_step.cpp")


@pytest.fixture(scope="module")
def step(kernel) -> Callable[..., tuple[Tensor, Tensor]]:
    """solver_step of fastscore.ops by the kernel, for operands that all have the layout of x."""

    class Args(ctypes.Structure):
        _fields_ = (
            *((name, kernel.Operand) for name in ("out", "m", "x", "h")),
            *(("history", kernel.Operand * 3), ("history_count", ctypes.c_int)),
            *(("exponent", kernel.Operand), ("noise", kernel.Operand)),
            *(("coefficients", ctypes.c_void_p), ("coefficient_stride", ctypes.c_int64)),
            *(("rng", ctypes.c_void_p), ("samples", ctypes.c_void_p)),
            *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels")),
            ("dtype", ctypes.c_int32),
        )

    def run(
        x: Tensor,
        h: Tensor,
        history: Sequence[Tensor],
        rows: Tensor,
        *,
        exponent: Tensor | None = None,
        noise: Tensor | None = None,
        rng: Tensor | None = None,
        samples: Tensor | None = None,
        out: Tensor | None = None,
        m: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        out, m = (torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) if t is None else t for t in (out, m))
        channels = 1 if x[:1].is_contiguous() else x.shape[1]
        args = Args(
            **{name: kernel.Operand.of(t) for name, t in (("out", out), ("m", m), ("x", x), ("h", h))},
            history=tuple(kernel.Operand.of(earlier) for earlier in history),
            history_count=len(history),
            **{name: kernel.Operand.of(t) for name, t in (("exponent", exponent), ("noise", noise)) if t is not None},
            coefficients=rows.data_ptr(),
            coefficient_stride=rows.stride(0) if rows.ndim == 2 else 0,
            **{name: t.data_ptr() for name, t in (("rng", rng), ("samples", samples)) if t is not None},
            batch=x.shape[0],
            pixels=x.numel() // (x.shape[0] * channels) if x.numel() else 0,
            channels=channels,
            dtype=kernel.DTYPES[x.dtype],
        )
        kernel.solver_step(args)
        return out, m

    return run


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    noise: str = "drawn",
    rows: bool = False,
    terms: int = 1,
    exponent: bool = True,
) -> Case:
    """Arguments (x, h, history, coefficients, keywords) of a call; a third of the elements are clamped."""
    x, h, *history = (make_input(shape, layout, dtype=dtype, seed=seed) for seed in range(terms + 2))
    weights = [0.9, -0.7, 1.1, 0.4, 0.6, *(-0.3, 0.2, 0.25)[:terms], 0.5, 0.7]
    coefficients = torch.tensor(weights, dtype=torch.float64)
    if rows:
        coefficients = coefficients * make_input((shape[0], terms + 7), dtype=torch.float64, scale=0.1, mean=1, seed=90)
    keywords = {"exponent": make_input(shape, layout, dtype=dtype, seed=92)} if exponent else {}
    if noise == "given":
        keywords["noise"] = make_input(shape, layout, dtype=dtype, seed=91)
    elif noise == "drawn":
        keywords |= {"rng": RNG, "samples": torch.arange(shape[0]) * 3 + 2**33}
    return x, h, history, coefficients.to(accumulation_dtype(dtype)), keywords


def call(function: Callable[..., tuple[Tensor, Tensor]], case: Case, **more: Tensor) -> tuple[Tensor, Tensor]:
    *arguments, keywords = case
    return function(*arguments, **keywords, **more)


def every_tensor(case: Case, move: Callable[[Tensor], Tensor]) -> Case:
    """The case with `move` done to everything that has the shape of the state."""
    x, h, history, rows, keywords = case
    moved = {k: move(v) if v.is_floating_point() else v for k, v in keywords.items()}
    return move(x), move(h), [move(earlier) for earlier in history], rows, moved


def assert_parity(actual: tuple[Tensor, Tensor], case: Case) -> None:
    *tensors, rows, keywords = every_tensor(case, Tensor.double)
    plain, oracle = call(reference.solver_step, case), reference.solver_step(*tensors, rows.double(), **keywords)
    if case[0].dtype != torch.float64:
        for name, one, exact, low in zip(("solver_step", "m"), actual, oracle, plain, strict=True):
            assert_error_within_budget(one, exact, low, name)
        return
    # The oracle rounds as much as the kernel: 3 times for m, then for a sum of at most 6 terms of size 5, of which the
    # noise has 4 units of a normal, 3 of an exponential and that of its argument.
    for one, other in zip(actual, plain, strict=True):
        assert ((one - other).abs() <= 2 * (3 + 12 + 8) * 2.0**-53 * (5 + other.abs())).all()


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(step, shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for rows in (False, True):
            case = make_case(shape, dtype, layout, noise, rows)
            assert_parity(call(step, case), case)


@pytest.mark.parametrize("terms", range(4))
@pytest.mark.parametrize("exponent", [False, True])
def test_terms(step, terms: int, exponent: bool) -> None:
    for noise in ("drawn", "given", "none"):
        case = make_case((3, 1, 5, 8), noise=noise, terms=terms, exponent=exponent)
        assert_parity(call(step, case), case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_strided_batch(step, layout: str, dtype: torch.dtype) -> None:
    """Samples that lie apart, in whole words (gap 32) and not, each operand with a stride of its own: the same bits."""
    for shape in ((3, 2, 4, 4), (3, 3, 5, 7)):
        for noise in ("drawn", "given"):
            case = make_case(shape, dtype, layout, noise, rows=True, terms=2)
            case[2][1] = case[2][1][:1].expand_as(case[0])
            want = call(step, every_tensor(case, lambda t: as_layout(t.clone(), layout)))
            for gap in (32, 5):
                gaps = iter(range(gap, 10 * gap, gap))

                def spread(tensor: Tensor, gaps: Iterator[int] = gaps) -> Tensor:
                    return apart(tensor, next(gaps)) if tensor.stride(0) else tensor

                out, m = (spread(torch.zeros_like(t)) for t in want)
                call(step, every_tensor(case, spread), out=out, m=m)
                for written, expected in zip((out, m), want, strict=True):
                    assert torch.equal(written, expected)
                    size = written[0].numel()
                    between = written.as_strided((3, written.stride(0) - size), (written.stride(0), 1), size)
                    assert between.isnan().all()


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_grid_order_format_or_batch(kernel, step, dtype: torch.dtype, noise: str) -> None:
    case = make_case((5, 4, 62, 63), dtype, noise=noise, rows=True)
    want = call(step, case)
    with kernel.multiprocessors(1):  # 32 blocks where 39 or more are wanted: they loop
        looped = call(step, case)
    with kernel.order(1):
        ordered = call(step, case)
    other_format = call(step, every_tensor(case, lambda t: as_layout(t, "channels_last")))
    x, h, history, rows, keywords = every_tensor(case, lambda t: t[3:])
    alone = call(step, (x, h, history, rows[3:], {k: v[3:] if k == "samples" else v for k, v in keywords.items()}))
    for one, two, three, four, five in zip(want, looped, ordered, other_format, alone, strict=True):
        assert torch.equal(two, one)
        assert torch.equal(three, one)
        assert torch.equal(four, one)
        assert torch.equal(five, one[3:])


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_noise_of_weight_zero_is_not_looked_at(step, noise: str) -> None:
    case = make_case((3, 1, 5, 8), noise=noise, rows=True)
    case[3][1, S] = 0
    without = step(*case[:4])
    case[4]["exponent"][1] = math.inf
    if noise == "given":
        case[4]["noise"][1] = math.nan
    out, m = call(step, case)
    assert torch.equal(out[1], without[0][1])
    assert torch.equal(m, without[1])
    assert not torch.isclose(out[0], without[0][0]).any()


def test_nan_is_not_clamped_and_infinity_is(step) -> None:
    for dtype in DTYPES:
        case = make_case((3, 1, 5, 8), dtype, exponent=False)
        x, h, history = (t.flatten(1) for t in (case[0], case[1], case[2][0]))
        h[1, 7], x[2, 3], history[0, 1] = math.nan, math.nan, math.nan
        h[0, 0], h[0, 2] = math.inf, -math.inf
        out, m = (t.flatten(1) for t in call(step, case))
        assert torch.isnan(m).nonzero().tolist() == [[1, 7], [2, 3]]
        assert torch.isnan(out).nonzero().tolist() == [[0, 1], [1, 7], [2, 3]]
        bound = case[3][C].to(dtype).item()
        assert m[0, [0, 2]].tolist() == [-bound, bound]
        case[3][C] = math.inf
        assert call(step, case)[1].flatten(1)[0, [0, 2]].tolist() == [-math.inf, math.inf]


def test_in_place_and_without_m(step) -> None:
    for dtype in DTYPES:
        for shape in ((3, 2, 5, 7), (3, 2, 4, 8)):
            case = make_case(shape, dtype)
            want, _ = call(step, case)
            nothing = torch.empty(0, dtype=dtype)
            assert nothing.data_ptr() == 0
            out, _ = call(step, case, out=case[0], m=nothing)
            assert out is case[0]
            assert torch.equal(out, want)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(step, shape: tuple[int, ...]) -> None:
    assert call(step, make_case(shape))[0].shape == shape

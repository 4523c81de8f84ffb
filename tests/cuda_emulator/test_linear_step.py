"""csrc/cuda/linear_step.cu against the reference, in the emulator."""

import ctypes
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import as_layout, make_input

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
        dtype: int | None = None,
    ) -> Tensor:
        if out is None:
            out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)  # poisoned
        terms = [*history, noise] if noise is not None else list(history)
        channels = 1 if x.numel() == 0 or x[0].is_contiguous() else x.shape[1]
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
            pixels=math.prod(x.shape[1:]) // channels,
            channels=channels,
            dtype=kernel.DTYPES[x.dtype] if dtype is None else dtype,
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_strided_batch(step, layout: str, dtype: torch.dtype) -> None:
    """Samples that lie apart, by whole words and not, each operand with a stride of its own: the same bits."""
    for shape, gaps in (((3, 2, 4, 4), (32, 5)), ((3, 3, 5, 7), (23, 5))):  # 105 + 23 is a multiple of 8
        x, history, rows, keywords = make_case(shape, dtype, layout, per_sample=True)
        history[1] = history[1][:1].expand_as(x)
        dense = [history[0], as_layout(history[1].clone(), layout)]
        want = step(x, dense, rows, **keywords)
        for gap in gaps:

            def apart(tensor: Tensor, gap: int, fill: float = float("nan")) -> tuple[Tensor, Tensor]:
                """The tensor with gaps, and the gaps."""
                size = tensor[0].numel()
                buffer = torch.full((tensor.shape[0], size + gap), fill, dtype=tensor.dtype)
                view = buffer.as_strided(tensor.shape, (size + gap, *tensor.stride()[1:]))
                return view.copy_(tensor), buffer[:, size:]

            out, gaps_of_out = apart(torch.zeros_like(x), gap + 32, fill=7.0)
            step(apart(x, gap)[0], [apart(history[0], gap + 64)[0], history[1]], rows, **keywords, out=out)
            assert torch.equal(out, want)
            assert (gaps_of_out == 7).all()


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_grid_order_or_format(kernel, step, dtype: torch.dtype, noise: str) -> None:
    x, history, rows, keywords = make_case((5, 4, 62, 63), dtype, noise=noise, per_sample=True)
    want = step(x, history, rows, **keywords)
    with kernel.multiprocessors(1):  # 32 blocks where 39 or more are wanted: they loop
        assert torch.equal(step(x, history, rows, **keywords), want)
    with kernel.order(1):
        assert torch.equal(step(x, history, rows, **keywords), want)
    moved = {name: as_layout(v, "channels_last") if v.ndim == 4 else v for name, v in keywords.items()}
    out = step(as_layout(x, "channels_last"), [as_layout(h, "channels_last") for h in history], rows, **moved)
    assert torch.equal(out, want)


@pytest.mark.parametrize("terms", range(7))
def test_history(step, terms: int) -> None:
    for noise in ("drawn", "given", "none"):
        x, _, _, keywords = make_case((3, 1, 5, 10), torch.float32, noise=noise)
        history = [make_input(tuple(x.shape), seed=k + 1) for k in range(terms)]
        rows = make_input((terms + 2,), seed=90)
        assert_parity(step(x, history, rows, **keywords), x, history, rows, keywords)


@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_noise_of_weight_zero_is_not_looked_at(step, noise: str) -> None:
    x, history, rows, keywords = make_case((3, 1, 5, 8), torch.float32, noise=noise, per_sample=True)
    rows[1, -1] = 0
    without = step(x, history, rows)
    if noise == "given":
        keywords["noise"][1] = float("nan")
    out = step(x, history, rows, **keywords)
    assert torch.equal(out[1], without[1])
    assert not torch.isclose(out[0], without[0]).any()


def test_in_place(step) -> None:
    for dtype in DTYPES:
        x, history, rows, keywords = make_case((3, 2, 5, 7), dtype)
        want = step(x, history, rows, **keywords)
        assert torch.equal(step(x, history, rows, **keywords, out=x), want)


def test_special_values(step) -> None:
    """Zeros, subnormals, overflow, infinities and NaN are those of the conversions of torch."""
    special = [0.0, -0.0, 1e-8, 6e-8, 6.2e-5, 65504.0, 65520.0, 1e6, float("inf"), -float("inf"), float("nan")]
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.tensor(special).to(dtype).repeat(1, 9)[..., None, None]
        for weight in (1.0, 0.5, 2.0):
            out = step(x, [], torch.tensor([weight, 0.0]))
            torch.testing.assert_close(out, (x.float() * weight).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_do(step, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert step(x, [x], torch.ones(3), rng=RNG, samples=torch.arange(shape[0])).shape == shape


def test_unknown_dtype(kernel, step) -> None:
    with pytest.raises(RuntimeError, match="cudaError 1: invalid argument"):
        step(torch.ones(2, 3).view(2, 1, 1, 3), [], torch.ones(2), dtype=17)

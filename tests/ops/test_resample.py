"""resample: every version against the definition, what must not change a bit, derivatives, traces, bad arguments."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from fastscore import _backend, _library, reference
from fastscore._checks import accumulation_dtype
from fastscore.nn.resample import fir_taps
from fastscore.ops import resample
from fastscore.reference.resample import resample_to
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, apart, as_layout, make_input
from fastscore.testing.ops import (
    DTYPES,
    Rows,
    assert_bits_hold_by_batch,
    assert_bits_hold_by_threads_and_format,
    assert_one_native_launch,
    run_op_on,
)

RAW = torch.ops.fastscore.resample.default
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
# (up, down, padding) for four taps: as NCSN++ has them, and with more zeros than the filter is long.
MODES = [(1, 1, (0, 0)), (1, 1, (2, 2)), (2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (5, 7)), (2, 1, (6, 5)), (1, 2, (7, 4))]


def make_taps(length: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    """Neither symmetric nor separable."""
    return make_input((length, length), dtype=dtype, seed=9)


def mode_options(mode: tuple[int, int, tuple[int, int]]) -> dict:
    return dict(zip(("up", "down", "padding"), mode, strict=True))


def definition(x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int]) -> Tensor:
    """Zeros after every pixel, zeros around, the sum over the taps at every place, every down-th of them."""
    (before, after), length = padding, len(taps)
    batch, channels, height, width = x.shape
    z = x.new_zeros(batch, channels, height * up + before + after, width * up + before + after)
    z[:, :, before : before + height * up : up, before : before + width * up : up] = x
    full = torch.zeros_like(z[:, :, length - 1 :, length - 1 :])
    for a in range(length):
        for b in range(length):
            full += taps[length - 1 - a, length - 1 - b] * z[:, :, a : a + full.shape[2], b : b + full.shape[3]]
    return full[:, :, ::down, ::down]


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("up", "down", "padding"), MODES)
def test_it_is_the_definition(up: int, down: int, padding: tuple[int, int], length: int) -> None:
    for shape in ((2, 3, 8, 9), (1, 1, 9, 8)):
        x, taps = make_input(shape, dtype=torch.float64), make_taps(length)
        actual = resample(x, taps, up=up, down=down, padding=padding)
        torch.testing.assert_close(actual, definition(x, taps, up, down, padding), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_by_layout(layout: str, dtype: torch.dtype) -> None:
    x, taps = make_input((3, 4, 6, 10), layout, dtype=dtype), make_taps(dtype=accumulation_dtype(dtype))
    for up, down, padding in MODES:
        actual = resample(x, taps, up=up, down=down, padding=padding)
        expected = definition(x.double(), taps.double(), up, down, padding)
        plain = definition(x.to(taps.dtype), taps, up, down, padding).to(dtype)
        if dtype == torch.float64:
            torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
        else:
            assert_error_within_budget(actual, expected, plain, "resample")
        last = layout == "channels_last"
        assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def test_taps_of_another_dtype() -> None:
    x, taps = make_input((1, 2, 5, 6)), make_taps()
    assert torch.equal(resample(x, taps), resample(x, taps.float()))
    assert torch.equal(resample(x.bfloat16(), taps.bfloat16()), resample(x.bfloat16(), taps.bfloat16().float()))


def test_zero_sizes() -> None:
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        out = resample(torch.ones(shape), torch.ones(2, 2), up=2, padding=(1, 1))
        assert torch.equal(out, torch.zeros(*shape[:2], 2 * shape[2] + 1, 9))


# ------------------------------------------------------------------------------------------------ kernels

# Rows and channels of less than a vector, of vectors and a part of one, of several tiles; narrow planes in two groups.
SHAPES = [(2, 1, 2, 2), (2, 3, 200, 2), (2, 18, 7, 6), (1, 2, 3, 4500), (1, 20, 19, 37), (2, 67, 4, 41)]
# A product of a column and a row; rows that are multiples of one another, but two kinds; a row of zeros; no such thing.
FILTERS = {
    "one term": fir_taps((1, 2, 4, 7)).double(),
    "two terms": torch.tensor([[1.0, 3, -3, 1], [-2, -6, 6, -2], [1, 2, 1, 0], [0.5, 1, 0.5, 0]]).double(),
    "a row of zeros": torch.tensor([[1.0, 3, 3, 1], [0, 0, 0, 0], [5, 1, 2, 0], [0, 0, 0, 0]]).double(),
    "four terms": make_taps(),
}


def assert_parity(actual: Tensor, x: Tensor, taps: Tensor, mode: tuple[int, int, tuple[int, int]]) -> None:
    exact, plain = (definition(x.to(d), taps.to(d), *mode) for d in (torch.float64, accumulation_dtype(x.dtype)))
    if x.dtype == torch.float64:  # as many roundings as there are taps, and two for each product
        size = definition(x.abs(), taps.abs(), *mode)
        assert ((actual - exact).abs() <= 2 * taps.numel() * 2.0**-53 * size).all()
    else:
        assert_error_within_budget(actual, exact, plain.to(x.dtype), "resample")


@native
@pytest.mark.parametrize("taps", FILTERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, taps: str) -> None:
    weights = FILTERS[taps].to(accumulation_dtype(dtype))
    for layout in ("contiguous", "channels_last"):
        x = make_input(shape, layout, dtype=dtype)
        for mode in MODES[1:]:  # the first wants four pixels
            with _backend.backend("cpu"):
                actual = resample(x, weights, **mode_options(mode))
            assert_parity(actual, x, weights, mode)


@native
def test_taps_may_be_turned_and_padding_negative() -> None:
    """As the derivatives have it: a part of x is cut off, or the result ends anywhere."""
    for layout in ("contiguous", "channels_last"):
        x, taps = make_input((2, 3, 11, 40), layout, dtype=torch.float64), make_taps()
        for up, down in ((1, 1), (2, 1), (1, 2)):
            for before in (-7, -2, 3):
                for size in ([1, 1], [9, 23]):
                    actual = _library.NATIVE.resample_cpu(x, taps, up, down, before, size, True)
                    expected = resample_to(x, taps, up, down, before, size, True)
                    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@native
def test_samples_may_lie_apart() -> None:
    for layout in ("contiguous", "channels_last"):
        x, taps = make_input((3, 4, 6, 9), layout), make_taps(dtype=torch.float32)
        for mode in MODES[:4]:
            want = resample(x, taps, **mode_options(mode))
            assert torch.equal(resample(apart(x, 3), taps, **mode_options(mode)), want)
            assert torch.equal(resample(x[1:], taps, **mode_options(mode)), want[1:])


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_values_do_not_overflow_on_the_way(layout: str) -> None:
    x = torch.full((1, 3, 20, 20), 3.4e38).contiguous(memory_format=torch.channels_last)
    x, taps = as_layout(x, layout), fir_taps((1, 3, 3, 1))
    for mode in ((1, 2, (1, 1)), (1, 1, (2, 2))):
        assert torch.isfinite(resample(x, taps, **mode_options(mode))).all()


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_zeros_between_pixels_are_not_multiplied(layout: str) -> None:
    x = make_input((1, 8, 4, 8), layout).zero_()
    x[0, 1, 2, 2] = float("inf")
    for taps in (torch.ones(4, 4), torch.ones(3, 3), make_taps(dtype=torch.float32)):
        for mode in ((2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2))):
            out = resample(x, taps, **mode_options(mode))
            hit = definition(x.isinf().double(), taps.abs().double(), *mode) > 0
            assert torch.equal(out.isinf(), hit)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    x, taps = make_input((3, 4, 6, 10), layout), make_taps(dtype=torch.float32)
    assert_one_native_launch("resample", layout, lambda: resample(x, taps, up=2, padding=(2, 1)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("up", "down", "padding"), MODES)
def test_into_given_memory(up: int, down: int, padding: tuple[int, int], layout: str) -> None:
    """To the bit what is returned, in both layouts of the result."""
    x, taps = make_input((3, 5, 6, 10), layout), make_taps(dtype=torch.float32)
    expected = resample(x, taps, up=up, down=down, padding=padding)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        out = torch.full_like(expected, float("nan"), memory_format=memory_format)
        torch.ops.fastscore.resample_into(x, taps, up, down, padding[0], False, out)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
        if out.stride() == expected.stride():
            assert torch.equal(out, expected)


@native
@pytest.mark.parametrize(
    ("error", "message", "out"),
    [
        (ValueError, r"out must have shape \(B, C, H', W'\), got \[3\]", torch.empty(3)),
        (ValueError, r"out must have shape \[2, 3, H', W'\], got \[2, 4, 8, 10\]", torch.empty(2, 4, 8, 10)),
        (TypeError, "out must be Float as x is, got Double", torch.empty(2, 3, 8, 10).double()),
        (ValueError, "out must have dense samples", torch.empty(2, 3, 8, 20)[..., ::2]),
    ],
)
def test_bad_memory(error: type[Exception], message: str, out: Tensor) -> None:
    with pytest.raises(error, match=message):
        torch.ops.fastscore.resample_into(make_input((2, 3, 4, 5)), make_taps(dtype=torch.float32), 2, 1, 2, False, out)


@native
def test_the_gradient_is_a_launch_too() -> None:
    x, taps = make_input((2, 3, 6, 8)).requires_grad_(), make_taps(dtype=torch.float32)
    _library.NATIVE.reset_launches()
    torch.autograd.grad(resample(x, taps, down=2, padding=(1, 1)).sum(), x)
    assert _library.NATIVE.launches() == {f"resample.{_library.build_info()['isa']}": 2}


@native
def test_raw_launcher() -> None:
    x, taps = make_input((2, 3, 6, 8)), make_taps(dtype=torch.float32)
    want = resample(x, taps, up=2, padding=(2, 1))
    assert torch.equal(_library.NATIVE.resample_cpu(x, taps, 2, 1, 2, [12, 16], False), want)
    with pytest.raises(ValueError, match="resample_cpu: x must be a cpu tensor, got one on meta"):
        _library.NATIVE.resample_cpu(x.to("meta"), taps, 2, 1, 2, [12, 16], False)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES[1:5], ids=str)
def test_bits_do_not_depend_on_batch_threads_or_format(
    mode: tuple[int, int, tuple[int, int]], dtype: torch.dtype, threads
) -> None:
    shape, taps = (12, 5, 21, 43), make_taps(dtype=accumulation_dtype(dtype))
    x = make_input(shape, dtype=dtype)

    def call(rows: Rows, layout: str) -> Tensor:
        return resample(as_layout(x[rows], layout), taps, **mode_options(mode))

    assert_bits_hold_by_batch(call, assert_bits_hold_by_threads_and_format(call, shape, threads))


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        (make_input((2, 3, 5, width), layout, dtype=dtype), taps.to(accumulation_dtype(dtype)), mode_options(mode))
        for layout in ("contiguous", "channels_last")
        for width in (5, 75)
        for dtype in DTYPES
        for taps in (FILTERS["one term"], FILTERS["four terms"], make_taps(3))
        for mode in MODES[1:4]
    ]
    for (x, taps, mode), actual in zip(cases, run_op_on(isa, "resample", cases, tmp_path), strict=True):
        assert_parity(actual, x, taps, tuple(mode.values()))


@native
@pytest.mark.parametrize(("layout", "copies"), [("contiguous", 0), ("channels_last", 0), ("sliced", 1)])
def test_copies_only_what_has_gaps(layout: str, copies: int) -> None:
    x, taps = make_input((3, 4, 6, 10), layout), make_taps(dtype=torch.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        resample(x, taps, down=2, padding=(1, 1))
    names = [event.name for event in profile.events()]
    assert names.count("fastscore::resample") == 1
    assert names.count("aten::copy_") == copies


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize(("up", "down", "padding"), MODES)
def test_gradcheck(up: int, down: int, padding: tuple[int, int], chosen: str) -> None:
    x, taps = make_input((1, 2, 5, 4), dtype=torch.float64).requires_grad_(), make_taps()

    def call(x: Tensor) -> Tensor:
        return resample(x, taps, up=up, down=down, padding=padding)

    with _backend.backend(chosen):
        assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=chosen == "auto")
        assert torch.autograd.gradgradcheck(call, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("up", "down", "padding"), MODES)
def test_the_gradient_is_the_adjoint(up: int, down: int, padding: tuple[int, int], layout: str) -> None:
    x, taps = make_input((2, 3, 7, 6), layout, dtype=torch.float64).requires_grad_(), make_taps()
    out = resample(x, taps, up=up, down=down, padding=padding)
    grad = make_input(tuple(out.shape), layout, dtype=torch.float64, seed=2)
    (actual,) = torch.autograd.grad(out, x, grad)
    (expected,) = torch.autograd.grad(definition(x, taps, up, down, padding), x, grad)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)
    assert actual.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("up", "down", "padding"), MODES)
def test_gradients_within_budget(up: int, down: int, padding: tuple[int, int], dtype: torch.dtype) -> None:
    def gradient(function, dtype: torch.dtype, computed: torch.dtype) -> Tensor:
        x = make_input((2, 3, 8, 9), dtype=low).to(dtype).requires_grad_()
        out = function(x.to(computed), make_taps(dtype=torch.float32).to(accumulation_dtype(dtype))).to(dtype)
        return torch.autograd.grad(out, x, make_input(tuple(out.shape), dtype=low, seed=2).to(dtype))[0]

    low = dtype
    exact = gradient(lambda x, t: definition(x, t, up, down, padding), torch.float64, torch.float64)
    plain = gradient(lambda x, t: definition(x, t, up, down, padding), dtype, torch.float32)
    actual = gradient(lambda x, t: resample(x, t, up=up, down=down, padding=padding), dtype, dtype)
    assert_error_within_budget(actual, exact, plain, "gradient", factor=3)


def test_dual_numbers_outside_torch_func() -> None:
    x, tangent = (make_input((1, 2, 5, 4), dtype=torch.float64, seed=seed) for seed in (0, 1))
    with forward_ad.dual_level():
        out = resample(forward_ad.make_dual(x, tangent), make_taps(), up=2, padding=(2, 1))
        assert torch.equal(forward_ad.unpack_dual(out).tangent, resample(tangent, make_taps(), up=2, padding=(2, 1)))


def test_torch_func() -> None:
    x, taps = make_input((1, 1, 4, 5), dtype=torch.float64), make_taps()

    def of(function):
        return lambda x: function(x, taps, down=2, padding=(1, 1)).square()

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(
            transform(of(resample))(x), transform(of(reference.resample))(x), rtol=1e-12, atol=1e-12
        )
    mapped = torch.func.vmap(lambda v: resample(v, taps, up=2, padding=(2, 1)), in_dims=1)
    several = make_input((2, 3, 4, 5, 6), dtype=torch.float64)
    want = torch.stack([resample(several[:, i], taps, up=2, padding=(2, 1)) for i in range(3)])
    torch.testing.assert_close(mapped(several), want, rtol=1e-14, atol=1e-14)


def test_no_derivative_in_the_taps() -> None:
    x, taps = make_input((1, 2, 5, 4)), make_taps(dtype=torch.float32)
    with pytest.raises(ValueError, match="resample: taps must not require a gradient"):
        resample(x, taps.clone().requires_grad_())
    with pytest.raises(ValueError, match="resample: taps must have no tangent"):
        torch.func.jvp(lambda taps: resample(x, taps), (taps,), (taps,))
    with pytest.raises(ValueError, match="resample: taps must not be mapped by vmap"):
        torch.func.vmap(lambda taps: resample(x, taps))(taps.expand(3, 4, 4))


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("up", "down", "padding"), MODES[:4])
def test_opcheck(up: int, down: int, padding: tuple[int, int], layout: str) -> None:
    x, taps = make_input((3, 2, 6, 8), layout), make_taps(dtype=torch.float32)
    size = reference.resample(x, taps, up=up, down=down, padding=padding).shape[2:]
    torch.library.opcheck(RAW, (x, taps, up, down, padding[0], list(size), False))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes(device: str, layout: str) -> None:
    x, taps = make_input((3, 2, 6, 8), layout, dtype=torch.bfloat16), make_taps(dtype=torch.float32)
    real = resample(x, taps, up=2, padding=(2, 1))
    with FakeTensorMode():
        fake = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        out = resample(fake, torch.empty(4, 4, device=device), up=2, padding=(2, 1))
        assert (out.shape, out.dtype, out.stride()) == (real.shape, real.dtype, real.stride())
        assert out.device.type == device


@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(grad: bool) -> None:
    torch._dynamo.reset()
    taps = make_taps()

    def step(x: Tensor) -> Tensor:
        return resample(resample(torch.sin(x), taps, up=2, padding=(2, 1)), taps, down=2, padding=(1, 1))

    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    for backend in ("aot_eager", counting):
        compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
        for shape in ((2, 3, 8, 6), (3, 3, 4, 10)):
            x = make_input(shape, dtype=torch.float64).requires_grad_(grad)
            expected, actual = step(x), compiled(x)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)
            if grad:
                a, e = (torch.autograd.grad(out.square().sum(), x)[0] for out in (actual, expected))
                torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    assert len(graphs) == 1


def test_compiled_torch_func() -> None:
    torch._dynamo.reset()
    x, taps = make_input((1, 2, 5, 4), dtype=torch.float64), make_taps()

    def tangent(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: resample(x, taps, padding=(2, 2)), (x,), (x,))[1]

    out = torch.compile(tangent, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(out, resample(x, taps, padding=(2, 2)), rtol=1e-14, atol=1e-14)


# ------------------------------------------------------------------------------------------------ bad arguments

X, TAPS = torch.zeros(2, 3, 4, 5), torch.ones(4, 4)
BAD = [
    (TypeError, "x must be a tensor, got list", {"x": [1.0]}),
    (TypeError, "x must be float32, float64, bfloat16 or float16, got torch.int64", {"x": X.long()}),
    (ValueError, r"x must have shape \(B, C, H, W\), got \(3, 4, 5\)", {"x": X[0]}),
    (ValueError, r"x must with its padding be no smaller than taps, got a result of size \(1, 0\)", {"x": X[..., :3]}),
    (TypeError, "taps must be a tensor, got list", {"taps": [1.0, 3.0, 3.0, 1.0]}),
    (TypeError, "taps must be float32, .* got torch.int64", {"taps": TAPS.long()}),
    (ValueError, r"taps must have shape \(L, L\), 1 <= L <= 8, got \(4,\)", {"taps": TAPS[0]}),
    (ValueError, r"taps must have shape .* got \(4, 3\)", {"taps": TAPS[:, :3]}),
    (ValueError, r"taps must have shape .* got \(9, 9\)", {"taps": torch.ones(9, 9)}),
    (ValueError, "taps must be on the device of x, cpu, got meta", {"taps": TAPS.to("meta")}),
    (ValueError, "up must be 1 or 2, got 3", {"up": 3}),
    (ValueError, "down must be 1 or 2, got True", {"down": True}),
    (ValueError, "down must be 1 where up is 2, got 2", {"up": 2, "down": 2}),
    (ValueError, r"padding must be \(before, after\), integers of at least 0, got 1", {"padding": 1}),
    (ValueError, r"padding must be .* got \(0, -1\)", {"padding": (0, -1)}),
    (ValueError, r"padding must be .* got \(0.5, 1\)", {"padding": (0.5, 1)}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_bad_arguments(error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X, "taps": TAPS} | changed
    with pytest.raises(error, match=f"^resample: {message}"):
        resample(**arguments)

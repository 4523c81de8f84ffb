"""masked_replace_: every version against the reference, its derivatives, its traces, and what must not change a bit."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastscore import _backend, _library, reference
from fastscore.ops import linear_step, masked_replace_
from fastscore.testing.inputs import LAYOUTS, as_layout
from fastscore.testing.masked_replace import assert_parity, make_case
from fastscore.testing.ops import (
    BAD_NOISE,
    BAD_STATE,
    DTYPES,
    Rows,
    assert_bits_hold_by_batch,
    assert_bits_hold_by_threads_and_format,
    assert_one_native_launch,
    bad_coefficients,
    run_on,
)
from fastscore.testing.traffic import Traffic, no_host_sync

RAW = torch.ops.fastscore.masked_replace_.default
# One element a sample, less than a vector, more than a tile, channels-last with and without whole blocks of 4 pixels.
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 5, 33, 31), (2, 300, 2, 3), (2, 3, 4, 5, 6))

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def replaced(x: Tensor, *arguments: Tensor, layout: str = "contiguous", **keywords: Tensor) -> Tensor:
    """The op on a copy of the state, in a layout that can be written to."""
    state = as_layout(x.clone(), "contiguous" if layout == "expanded" else layout)
    assert masked_replace_(state, *arguments, **keywords) is state
    return state


# ------------------------------------------------------------------------------------------------ values


@native
@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for per_sample in (False, True):
            case = make_case(shape, dtype, layout, noise, per_sample)
            with _backend.backend("cpu"):
                assert_parity(replaced(*case[:4], layout=layout, **case[4]), case)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_by_layout(layout: str, dtype: torch.dtype) -> None:
    for noise in ("drawn", "given", "none"):
        case = make_case((4, 3, 6, 10), dtype, layout, noise)
        assert_parity(replaced(*case[:4], layout=layout, **case[4]), case)


@native
def test_operands_may_differ_in_layout() -> None:
    x, known, mask, rows, keywords = make_case((4, 3, 6, 10), noise="given", per_sample=True)
    want = replaced(x, known, mask, rows, **keywords)
    moved = as_layout(known, "channels_last"), as_layout(mask, "sliced"), rows.t().contiguous().t()
    for layout in ("contiguous", "channels_last", "permuted", "sliced"):
        actual = replaced(x, *moved, layout=layout, noise=as_layout(keywords["noise"], "permuted"))
        assert torch.equal(actual, want)
    one = replaced(x, known[:1].expand_as(x), mask[:1].expand_as(x), rows, **keywords)
    assert torch.equal(one, replaced(x, known[:1].repeat(4, 1, 1, 1), mask[:1].repeat(4, 1, 1, 1), rows, **keywords))


def test_reference_is_the_formula() -> None:
    x, known, mask, rows, keywords = make_case((3, 4, 5), torch.float64, noise="given", per_sample=True)
    for b in range(3):
        value = rows[b, 0] * known[b] + rows[b, 1] * keywords["noise"][b]
        want = [v if m else old for v, m, old in zip(value.flatten(), mask[b].flatten(), x[b].flatten(), strict=True)]
        actual = reference.masked_replace(x, known, mask, rows, **keywords)[b].flatten()
        torch.testing.assert_close(actual, torch.stack(want), rtol=1e-15, atol=1e-15)


@native
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_noise_of_weight_zero_is_not_looked_at(noise: str) -> None:
    x, known, mask, rows, keywords = make_case((3, 40), noise=noise)
    rows[1] = 0
    if noise == "given":
        keywords["noise"] = torch.full_like(x, torch.nan)
    without = replaced(x, known, mask, rows)
    assert torch.equal(replaced(x, known, mask, rows, **keywords), without)
    assert torch.equal(reference.masked_replace(x, known, mask, rows, **keywords), without)


@native
def test_drawn_is_the_noise_of_linear_step() -> None:
    x, _, mask, _, keywords = make_case((3, 3, 5, 7))
    z = linear_step(torch.zeros_like(x), (), torch.tensor([0.0, 1.0]), **keywords)
    actual = replaced(x, torch.zeros_like(x), mask, torch.tensor([0.0, 1.0]), **keywords)
    assert torch.equal(actual, torch.where(mask, z, x))


@native
def test_nan_stays_where_it_is() -> None:
    """In the state where the mask is False, and from the image where it is True."""
    x, known, mask, rows, keywords = make_case((3, 40))
    places = mask.nonzero()[5].tolist(), (~mask).nonzero()[5].tolist()
    known[tuple(places[0])] = x[tuple(places[1])] = torch.nan
    actual = replaced(x, known, mask, rows, **keywords)
    assert sorted(torch.isnan(actual).nonzero().tolist()) == sorted(places)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    case = make_case((4, 3, 6, 10), layout=layout)
    run = lambda: replaced(*case[:4], layout=layout, **case[4])  # noqa: E731
    assert_one_native_launch("masked_replace", layout, run)


# ------------------------------------------------------------------------------------------------ to the last bit


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 5), (12, 3, 33, 31)])
def test_bits_do_not_depend_on_batch_threads_or_format(shape: tuple[int, ...], dtype: torch.dtype, threads) -> None:
    x, known, mask, rows, keywords = make_case(shape, dtype)

    def step(some: Rows, layout: str) -> Tensor:
        moved = [as_layout(tensor[some], layout) for tensor in (known, mask)]
        drawn = {"rng": keywords["rng"], "samples": keywords["samples"][some]}
        return replaced(x[some], *moved, rows, layout=layout, **drawn)

    assert_bits_hold_by_batch(step, assert_bits_hold_by_threads_and_format(step, shape, threads))


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        make_case(shape, dtype, layout, noise)
        for shape, layout in (((3, 2163), "contiguous"), ((2, 3, 7, 9), "channels_last"))
        for dtype in DTYPES
        for noise in ("drawn", "given")
    ]
    program = "results = [fastscore.ops.masked_replace_(x.clone(), *rest, **keywords) for x, *rest, keywords in cases]"
    results, launches = run_on(isa, program, cases, tmp_path)
    assert launches == {f"masked_replace.{isa}": len(cases)}
    for case, actual in zip(cases, results, strict=True):
        assert_parity(actual, case)


# ------------------------------------------------------------------------------------------------ traffic


def test_one_pass() -> None:
    """The state, the image and a mask of a quarter of its size are read once, and the state is written."""
    x, known, mask, rows, keywords = make_case((16, 200))
    with Traffic(x) as traffic, no_host_sync():
        masked_replace_(x, known, mask, rows, **keywords)
    assert traffic.count.by_op == {"fastscore::masked_replace_": (1, 3.25)}


# ------------------------------------------------------------------------------------------------ derivatives, traces


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
def test_gradcheck(noise: str) -> None:
    x, known, mask, rows, keywords = make_case((2, 2, 3), torch.float64, noise=noise, per_sample=True)
    known = torch.where(mask, known, 0.5)  # finite differences go through all of it
    z = keywords.pop("noise", torch.zeros((), dtype=torch.float64))
    inputs = [t.requires_grad_() for t in (x, known, rows, z)]

    def call(x: Tensor, known: Tensor, rows: Tensor, z: Tensor) -> Tensor:
        given = {"noise": z} if noise == "given" else keywords
        # z takes part in every call, so that gradcheck finds a gradient for it.
        return masked_replace_(x * 1, known, mask, rows, **given) + 0 * z

    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
def test_opcheck(noise: str) -> None:
    for layout in ("contiguous", "channels_last", "sliced"):
        x, known, mask, rows, keywords = make_case((3, 2, 4, 5), torch.float32, layout, noise)
        given = [keywords.get(name) for name in ("noise", "rng", "samples")]
        torch.library.opcheck(RAW, (as_layout(x.clone(), layout), torch.nan_to_num(known), mask, rows, *given))


def test_fakes_and_compiled() -> None:
    torch._dynamo.reset()
    x, known, mask, rows, keywords = make_case((3, 2, 4, 5))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, known, mask, rows)]
        assert masked_replace_(*fake) is fake[0]

    def step(x: Tensor) -> Tensor:
        return masked_replace_(x * 1, known, mask, rows, **keywords)

    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))


# ------------------------------------------------------------------------------------------------ bad arguments

X, ROW = torch.zeros(2, 3), torch.zeros(2)
MASK = X > 0
SHAPE = r"coefficients must have shape \(2,\) or \(2, 2\), that is \[a, s\]"
BAD = [
    *BAD_STATE,
    (TypeError, "known must be a tensor, got float", {"known": 1.0}),
    (TypeError, "known must have the dtype of x, torch.float32, got torch.float64", {"known": X.double()}),
    (ValueError, r"known must have the shape of x, \(2, 3\), got \(3, 2\)", {"known": X.t()}),
    (ValueError, "known must be on the device of x, cpu, got meta", {"known": X.to("meta")}),
    (TypeError, "mask must be a bool tensor, got list", {"mask": [True]}),
    (TypeError, "mask must be a bool tensor, got torch.float32", {"mask": X}),
    (ValueError, r"mask must have the shape of x, \(2, 3\), got \(1, 3\)", {"mask": MASK[:1]}),
    (ValueError, "mask must be on the device of x, cpu, got meta", {"mask": MASK.to("meta")}),
    (ValueError, rf"{SHAPE}, got \(3,\)", {"coefficients": torch.zeros(3)}),
    (ValueError, rf"{SHAPE}, got \(3, 2\)", {"coefficients": torch.zeros(3, 2)}),
    *bad_coefficients(ROW),
    *BAD_NOISE,
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_bad_arguments(error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X.clone(), "known": X, "mask": MASK, "coefficients": ROW} | changed
    with pytest.raises(error, match=f"^masked_replace_: {message}"):
        masked_replace_(**arguments)


@native
@pytest.mark.parametrize(
    ("place", "value"),
    [(1, X.t()), (1, X.double()), (2, X), (2, MASK[:1]), (3, torch.zeros(3)), (3, ROW.double()), (4, X[:1]), (5, ROW)],
)
def test_the_native_library_refuses_what_would_crash_it(place: int, value: Tensor) -> None:
    arguments = [X.clone(), X, MASK, ROW, None, None, None]
    arguments[place] = value
    with pytest.raises((TypeError, ValueError), match=r"^masked_replace_: "):
        RAW(*arguments)


@native
def test_overlapping_memory_is_refused() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        masked_replace_(X[:1].expand(2, 3), X, MASK, ROW)
    buffer = torch.zeros(7)
    with pytest.raises(RuntimeError, match="some elements of the input tensor and the written-to"):
        masked_replace_(buffer[:6].view(2, 3), buffer[1:].view(2, 3), MASK, ROW)
    x, _, mask, rows, _ = make_case((3, 40))
    want = replaced(x, x.clone(), mask, rows)
    assert torch.equal(masked_replace_(x, x, mask, rows), want)

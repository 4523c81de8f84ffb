"""solver_step: every version against the reference, its derivatives, its traces, and what must not change a bit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from fastscore import _backend, _library, reference
from fastscore._checks import accumulation_dtype
from fastscore.ops import linear_step, solver_step, solver_step_
from fastscore.ops._unchecked import unchecked
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.ops import (
    BAD_HISTORY,
    BAD_NOISE,
    BAD_OUTPUT,
    BAD_STATE,
    DTYPES,
    RNG,
    Rows,
    assert_bits_hold_by_batch,
    assert_bits_hold_by_threads_and_format,
    assert_one_native_launch,
    bad_coefficients,
    run_op_on,
)
from fastscore.testing.solver_step import C, Case, E, S, call, laid_out, make_case
from fastscore.testing.traffic import Traffic

RAW = torch.ops.fastscore.solver_step.default
RAW_ = torch.ops.fastscore.solver_step_.default
# One element a sample, less than a vector, several tiles, channels-last with and without whole groups of four pixels.
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 5, 33, 31), (2, 300, 2, 3), (2, 3, 4, 5, 6))
SLOTS = ("p", "q", "c", "a", "b_0")  # then b_1 ... b_K, s, e

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def some_rows(case: Case, rows: slice | Tensor) -> Case:
    x, h, history, coefficients, keywords = case
    some = {k: v if k == "rng" else v[rows] for k, v in keywords.items()}
    return x[rows], h[rows], [m[rows] for m in history], coefficients, some


def assert_parity(actual: tuple[Tensor, Tensor], case: Case) -> None:
    x, h, history, coefficients, keywords = case
    plain = call(case, reference.solver_step)
    for one, other in zip(actual, plain, strict=True):
        assert one.stride() == other.stride()
    if x.dtype == torch.float64:
        # The oracle rounds as much as the kernel does. m: 3 roundings; the sum: those, two for each of its terms, 4
        # units of a normal, 3 of an exponential, and that of its argument, which counts e v times.
        column = coefficients.reshape(-1, coefficients.shape[-1], *[1] * (x.dim() - 1)).unbind(1)
        size_m = (column[0] * x).abs() + (column[1] * h).abs()
        size = (column[3] * x).abs() + column[4].abs() * size_m
        for b, m in zip(column[5:-2], history, strict=True):
            size = size + (b * m).abs()
        if "noise" in keywords or "rng" in keywords:
            unit = coefficients.new_tensor([0.0, 1.0])
            noise = {k: v for k, v in keywords.items() if k != "exponent"}
            ev = column[E] * keywords["exponent"] if "exponent" in keywords else torch.zeros_like(x)
            z = reference.linear_step(torch.zeros_like(x), [], unit, **noise)
            size = size + (column[S] * ev.exp() * z).abs() * (1 + ev.abs())
        operations = 2 * (len(history) + 3) + 3 + 4 + 3
        for one, other, scale, roundings in zip(actual, plain, (size, size_m), (operations, 3), strict=True):
            assert ((one - other).abs() <= 2 * roundings * 2.0**-53 * scale).all()
        return
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    wide = (x.double(), h.double(), [m.double() for m in history], coefficients.double(), in64)
    oracle = call(wide, reference.solver_step)
    for name, one, exact, low in zip(("solver_step", "m"), actual, oracle, plain, strict=True):
        assert_error_within_budget(one, exact, low, name)


def halves(case: Case) -> tuple[Case, Tensor]:
    """The case with h and the exponent as the halves of the channels of one tensor, and that tensor."""
    x, h, history, coefficients, keywords = case
    output = torch.cat([h, keywords["exponent"]], 1)
    h, v = output.chunk(2, 1)
    return (x.clone(), h, history, coefficients, keywords | {"exponent": v}), output


# ------------------------------------------------------------------------------------------------ values


@native
@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for rows in (False, True):
            case = make_case(shape, dtype, layout, noise=noise, rows=rows)
            with _backend.backend("cpu"):
                assert_parity(call(case), case)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_by_layout(layout: str, dtype: torch.dtype) -> None:
    for noise in ("drawn", "given", "none"):
        case = make_case((4, 3, 6, 10), dtype, layout, noise=noise)
        assert_parity(call(case), case)


@native
@pytest.mark.parametrize("terms", range(4))
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exponent", [False, True])
def test_parity_by_terms(terms: int, clip: bool, exponent: bool) -> None:
    for dtype in DTYPES:
        for noise in ("drawn", "given", "none"):
            case = make_case((3, 157), dtype, terms=terms, noise=noise, clip=clip, exponent=exponent)
            out, m = call(case)
            assert_parity((out, m), case)
            bound = case[3][C].to(dtype)
            assert bool((m.abs() == bound).any()) == clip
            assert (m.abs() <= bound).all()


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("e", [0.5, -1.0, 1.7])  # the first two scale without rounding, so that the exponential shows
def test_parity_of_wide_exponents(dtype: torch.dtype, e: float) -> None:
    case = make_case((3, 1000), dtype, noise="given")
    case[3][E] = e
    case[4]["exponent"] *= 1.5
    assert_parity(call(case), case)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_exponential_at_its_ends(dtype: torch.dtype, chosen: str) -> None:
    end = math.log(torch.finfo(dtype).max)
    v = torch.tensor([[-math.inf, -1e4, -end - 60, -0.0, 0.0, end + 1, 1e4, math.inf, math.nan]], dtype=dtype)
    row = torch.tensor([0.0, 0, 1, 0, 0, 2, 1], dtype=dtype)
    with _backend.backend(chosen):
        out, _ = solver_step(torch.zeros_like(v), torch.zeros_like(v), [], row, exponent=v, noise=torch.ones_like(v))
    want = torch.tensor([[0, 0, 0, 2, 2, math.inf, math.inf, math.inf, math.nan]], dtype=dtype)
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_of_one_output(dtype: torch.dtype, layout: str) -> None:
    for shape in ((4, 3, 6, 10), (3, 3, 33, 32), (1, 3, 5, 5)):
        for noise in ("drawn", "given", "none"):
            case = make_case(shape, dtype, noise=noise)
            out, m = call(case)
            viewed, output = halves(case)
            output = as_layout(output, layout)
            h, v = output.chunk(2, 1)
            viewed = (as_layout(viewed[0], layout), h, *viewed[2:4], viewed[4] | {"exponent": v})
            for one, other in zip(call(viewed), (out, m), strict=True):
                assert torch.equal(one, other)
            before = output.clone()
            assert call(viewed, solver_step_) is viewed[0]
            assert torch.equal(viewed[0], out)
            assert torch.equal(output, before)


@native
def test_halves_of_one_output_are_not_copied() -> None:
    for noise in ("drawn", "given"):
        viewed, _ = halves(make_case((4, 3, 6, 10), noise=noise))
        for function in (solver_step, solver_step_):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                call(viewed, function)
            names = {event.key for event in profile.key_averages()}
            assert f"fastscore::{function.__name__}" in names
            assert not names & {"aten::copy_", "aten::clone", "aten::contiguous"}


@native
def test_operands_may_differ_in_layout() -> None:
    x, h, history, coefficients, keywords = make_case((4, 3, 6, 10), terms=3, noise="given", rows=True)
    want = solver_step(x, h, history, coefficients, **keywords)
    mixed = [as_layout(m, layout) for m, layout in zip(history, LAYOUTS[1:4], strict=True)]
    table = coefficients.t().contiguous().t()
    for of_x, of_h, of_v in (
        ("channels_last", "sliced", "permuted"),
        ("sliced", "channels_last", "contiguous"),
        ("contiguous", "permuted", "channels_last"),
    ):
        moved = {"exponent": as_layout(keywords["exponent"], of_v), "noise": as_layout(keywords["noise"], of_h)}
        state, output = as_layout(x.clone(), of_x), as_layout(h.clone(), of_h)
        for one, other in zip(solver_step(state, output, mixed, table, **moved), want, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(solver_step_(state, output, mixed, table, **moved), want[0])
        assert torch.equal(output, h)


def test_reference_is_the_formula() -> None:
    """Element by element in Python's own arithmetic."""
    x, h, history, coefficients, keywords = make_case((3, 4), torch.float64, terms=2, noise="given", rows=True)
    out, m = reference.solver_step(x, h, history, coefficients, **keywords)
    clamped = 0
    for i in range(3):
        p, q, c, a, b0, b1, b2, s, e = coefficients[i].tolist()
        for j in range(4):
            raw = p * x[i, j].item() + q * h[i, j].item()
            clean = min(max(raw, -c), c)
            clamped += clean != raw
            w = s * math.exp(e * keywords["exponent"][i, j].item())
            want = a * x[i, j].item() + b0 * clean + b1 * history[0][i, j].item() + b2 * history[1][i, j].item()
            assert m[i, j].item() == pytest.approx(clean, rel=1e-14)
            assert out[i, j].item() == pytest.approx(want + w * keywords["noise"][i, j].item(), rel=1e-13)
    assert 0 < clamped < 12


@native
@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("rows", [False, True])
def test_noise_of_weight_zero_is_not_looked_at(noise: str, rows: bool, chosen: str) -> None:
    case = make_case((3, 40), noise=noise, rows=rows)
    case[3][..., S] = 0
    if noise == "given":
        case[4]["noise"].fill_(math.nan)
    case[4]["exponent"].fill_(math.inf)
    with _backend.backend(chosen):
        want = solver_step(*case[:4])
        for one, other in zip(call(case), want, strict=True):
            assert torch.equal(one, other)
        assert torch.isfinite(want[0]).all()


@native
def test_nan_and_infinity() -> None:
    case = make_case((3, 40), exponent=False)
    x, h, history = case[:3]
    h[1, 7], x[2, 3], history[0][0, 1] = math.nan, math.nan, math.nan
    h[0, 0], h[0, 2] = math.inf, -math.inf
    out, m = call(case)
    assert torch.isnan(m).nonzero().tolist() == [[1, 7], [2, 3]]
    assert torch.isnan(out).nonzero().tolist() == [[0, 1], [1, 7], [2, 3]]
    assert m[0, [0, 2]].tolist() == [-case[3][C].item(), case[3][C].item()]
    case[3][C] = math.inf
    assert call(case)[1][0, [0, 2]].tolist() == [-math.inf, math.inf]


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    case = make_case((4, 3, 6, 10), layout=layout)
    assert_one_native_launch("solver_step", layout, lambda: call(case))
    if layout not in ("expanded", "empty"):
        assert_one_native_launch("solver_step", layout, lambda: call(case, solver_step_))


@native
def test_raw_launcher() -> None:
    x, h, history, coefficients, keywords = make_case((4, 30))
    launched = _library.NATIVE.solver_step_cpu(x, h, history, coefficients, **keywords)
    v, rng, samples = keywords.values()
    for one, other in zip(launched, RAW(x, h, history, coefficients, v, None, rng, samples), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="solver_step_cpu: x must be a cpu tensor, got one on meta"):
        _library.NATIVE.solver_step_cpu(x.to("meta"), h, history, coefficients)


# ------------------------------------------------------------------------------------------------ to the last bit


@native
@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 5), (12, 3, 33, 31)])
def test_bits_do_not_depend_on_batch_threads_or_format(
    shape: tuple[int, ...], dtype: torch.dtype, noise: str, threads
) -> None:
    case = make_case(shape, dtype, noise=noise)

    def step(rows: Rows, layout: str) -> Tensor:
        return torch.stack(call(laid_out(some_rows(case, rows), layout)), 1)

    assert_bits_hold_by_batch(step, assert_bits_hold_by_threads_and_format(step, shape, threads))


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "empty"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_in_place_is_out_of_place(layout: str, dtype: torch.dtype, chosen: str) -> None:
    case = make_case((3, 3, 6, 7), dtype, layout)
    with _backend.backend(chosen):
        out, _ = call(case)
        copy = laid_out(case, layout)
        x, h, *_ = copy
        address = x.data_ptr()
        assert call(copy, solver_step_) is x
        assert x.data_ptr() == address
        assert torch.equal(x, out)
        assert torch.equal(h, case[1])


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("of_m", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_prediction_is_kept_where_asked(layout: str, of_m: str, chosen: str) -> None:
    case = make_case((3, 3, 6, 7), torch.float32, layout)
    m = as_layout(torch.zeros(3, 3, 6, 7), of_m)
    with _backend.backend(chosen):
        out, want = call(case)
        x, h, history, coefficients, keywords = laid_out(case, layout)
        before = h.clone()
        assert solver_step_(x, h, history, coefficients, m=m, **keywords) is x
    assert torch.equal(x, out)
    assert torch.equal(m, want)
    assert torch.equal(h, before)


def test_the_kept_prediction_has_memory_of_its_own() -> None:
    x, h, history, coefficients, keywords = make_case((3, 40), terms=2)
    for m in (x, h, history[1]):
        with pytest.raises(RuntimeError, match="memory"):
            solver_step_(x, h, history, coefficients, m=m, **keywords)
    with pytest.raises(ValueError, match="m must have the shape of x"):
        solver_step_(x, h, history, coefficients, m=h[:, :3], **keywords)


@native
def test_in_place_with_one_tensor_in_two_places() -> None:
    x, h, history, coefficients, keywords = make_case((3, 40), terms=2, noise="given")
    v, z = keywords["exponent"], keywords["noise"]
    for history in ([h, v], [x, h], [x[:1].expand_as(x), h]):  # the last is overwritten while rows still need it
        for v, z in ((keywords["exponent"], h), (h, x), (x, keywords["noise"])):
            for output in (h, x):
                same = {id(t): t.clone() for t in (x, h, *history, v, z)}
                out, _ = solver_step(x, output, history, coefficients, exponent=v, noise=z)
                state = same[id(x)]
                expanded = {id(history[0]): state[:1].expand_as(state)} if history[0].stride(0) == 0 else {}
                moved = [(same | expanded)[id(t)] for t in history]
                solver_step_(state, same[id(output)], moved, coefficients, exponent=same[id(v)], noise=same[id(z)])
                assert torch.equal(state, out)
                assert torch.equal(same[id(h)], h)
    wide, row = make_input((3, 80), seed=7), coefficients[[0, 1, 2, 3, 4, 7, 8]]
    # Samples that take turns in one storage, then some that lie on each other.
    for of_x, of_h in ((slice(40), slice(40, 80)), (slice(13, 53), slice(40))):
        want = wide.clone()
        want[:, of_x], _ = solver_step(wide[:, of_x], wide[:, of_h], [], row)
        solver_step_(wide[:, of_x], wide[:, of_h], [], row)
        assert torch.equal(wide, want)


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_noise_is_that_of_linear_step(dtype: torch.dtype) -> None:
    for shape, layout in (((3, 2163), "contiguous"), ((3, 3, 5, 7), "channels_last")):
        x, h, _, _, keywords = make_case(shape, dtype, layout, exponent=False)
        real = accumulation_dtype(dtype)
        row = torch.tensor([0.0, 1.0, math.inf, 0.3, 0.0, 1.7, 0.0], dtype=real)
        want = linear_step(x, (), torch.tensor([0.3, 1.7], dtype=real), **keywords)
        out, m = solver_step(x, h, (), row, **keywords)
        assert torch.equal(out, want)
        assert torch.equal(m, h)
        if dtype in (torch.float32, torch.float64):
            z = linear_step(torch.zeros_like(x), (), torch.tensor([0.0, 1.0], dtype=real), **keywords)
            v = make_input(shape, layout, dtype=dtype, seed=8)
            row[E] = 0.4
            drawn, given = (solver_step(x, h, (), row, exponent=v, **k)[0] for k in (keywords, {"noise": z}))
            assert torch.equal(drawn, given)


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        make_case(shape, dtype, layout, noise=noise, rows=True, terms=terms, clip=clip, exponent=exponent)
        for shape, layout in (((3, 2163), "contiguous"), ((2, 3, 7, 9), "channels_last"))
        for dtype in DTYPES
        for noise, terms in (("drawn", 0), ("given", 1), ("drawn", 2), ("none", 3))
        for clip, exponent in ((True, True), (False, False))
    ]
    results = run_op_on(isa, "solver_step", cases, tmp_path)
    for case, actual in zip(cases, results, strict=True):
        assert_parity(actual, case)


# ------------------------------------------------------------------------------------------------ cost


def test_traffic() -> None:
    x, h, history, coefficients, keywords = make_case((4, 3, 6, 10), terms=3, noise="none")
    for terms in range(4):
        row = torch.cat([coefficients[: 5 + terms], coefficients[S:]])
        for exponent in (None, keywords["exponent"]):
            read = 2 + terms + (exponent is not None)
            for function, written in ((solver_step_, 1), (solver_step, 2)):
                drawn = {"rng": RNG, "samples": torch.arange(4)}
                with Traffic(x) as traffic:
                    function(x, h, history[:terms], row, exponent=exponent, **drawn)
                assert (traffic.count.full, traffic.count.moved) == (1, read + written)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_unchecked(chosen: str) -> None:
    x, h, history, coefficients, keywords = case = make_case((3, 40), terms=2)
    v, rng, samples = keywords.values()
    with _backend.backend(chosen):
        want = call(case)
        ops = unchecked(x.device)
        given = h, history, coefficients, v, None, rng, samples
        state, kept = x.clone(), torch.empty_like(x)
        ops.solver_step_(state, *given, m=None)
        assert torch.equal(state, want[0])
        state = x.clone()
        ops.solver_step_(state, *given, m=kept)
        assert torch.equal(state, want[0])
        assert torch.equal(kept, want[1])


# ------------------------------------------------------------------------------------------------ derivatives


def leaves_of(case: Case) -> tuple[list[Tensor], Any]:
    """The tensors that have a derivative, and a function of them."""
    x, h, history, coefficients, keywords = case
    named = [name for name in ("exponent", "noise") if name in keywords]
    fixed = {k: v for k, v in keywords.items() if k not in named}

    def function(*leaves: Tensor, op: Any = solver_step) -> tuple[Tensor, Tensor]:
        x, h, coefficients, *rest = leaves
        given = dict(zip(named, rest[: len(named)], strict=True))
        return op(x, h, rest[len(named) :], coefficients, **given, **fixed)

    return [x, h, coefficients, *(keywords[name] for name in named), *history], function


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_gradcheck(noise: str, rows: bool, chosen: str) -> None:
    case = make_case((2, 2, 3), torch.float64, terms=2, noise=noise, rows=rows, exponent=noise != "none")
    inputs, function = leaves_of(case)
    inputs = [t.requires_grad_() for t in inputs]
    with torch.no_grad(), _backend.backend(chosen):
        raw = case[0] * case[3][..., 0].reshape(-1, 1, 1) + case[1] * case[3][..., 1].reshape(-1, 1, 1)
        distance = (raw.abs() - case[3][..., C].reshape(-1, 1, 1)).abs()
        assert distance.min() > 1e-3, "the difference quotients must not cross the corners of the clamp"
    with _backend.backend(chosen):
        assert torch.autograd.gradcheck(
            function,
            inputs,
            check_forward_ad=True,
            check_batched_grad=chosen == "auto",
            check_batched_forward_grad=False,
        )
        assert torch.autograd.gradgradcheck(function, inputs)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])  # gradcheck is stricter in float64
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_gradients_within_budget(dtype: torch.dtype, noise: str) -> None:
    def gradients(op: Any, dtype: torch.dtype, low: torch.dtype) -> list[Tensor]:
        case = make_case((3, 3, 8, 9), torch.float64, "channels_last", terms=2, noise=noise, rows=True)
        leaves, function = leaves_of(case)
        rounded = [accumulation_dtype(low) if i == 2 else low for i in range(len(leaves))]
        target = [accumulation_dtype(dtype) if i == 2 else dtype for i in range(len(leaves))]
        leaves = [t.to(r).to(d).requires_grad_() for t, r, d in zip(leaves, rounded, target, strict=True)]
        outs = function(*leaves, op=op)
        weights = [make_input((3, 3, 8, 9), dtype=torch.float64, seed=s).to(low).to(dtype) for s in (5, 6)]
        return list(torch.autograd.grad(outs, leaves, weights))

    oracle = gradients(reference.solver_step, torch.float64, dtype)
    plain = gradients(reference.solver_step, dtype, dtype)
    _library.NATIVE.reset_launches()
    fused = gradients(solver_step, dtype, dtype)
    assert _library.NATIVE.launches()[f"solver_step.{_library.build_info()['isa']}"] == 1
    for i, (actual, exact, low) in enumerate(zip(fused, oracle, plain, strict=True)):
        assert_error_within_budget(actual, exact, low, f"gradient {i}", factor=3)


def test_gradient_of_the_clamp() -> None:
    x = torch.tensor([[-3.0, -1.0, 0.5, 1.0, 3.0]], requires_grad=True)
    row = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], requires_grad=True)
    for chosen in ("auto", "reference"):
        with _backend.backend(chosen):
            _, m = solver_step(x, torch.zeros_like(x), [], row)
        gx, gr = torch.autograd.grad(m, (x, row), torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]]))
        assert gx.tolist() == [[0, 2, 4, 8, 0]]
        assert gr[C].item() == 15


@pytest.mark.parametrize("again", ["", "h", "history", "exponent", "noise"])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_in_place_with_gradients(again: str, chosen: str) -> None:
    """Also where the state is another argument, too."""
    x, h, history, coefficients, keywords = make_case((3, 40), torch.float64, noise="given")
    leaves = [t.requires_grad_() for t in (x, h, coefficients, *keywords.values(), *history)]

    def result(function: Any) -> tuple[Tensor, ...]:
        out = x * 1
        for _ in range(2):
            given = {"h": h, "history": history, **keywords}
            given |= {again: [out] if again == "history" else out} if again else {}
            out = function(out, coefficients=coefficients, **given)
        return out, *torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True, allow_unused=True)

    with _backend.backend(chosen):
        actual, want = result(solver_step_), result(lambda *args, **kwargs: solver_step(*args, **kwargs)[0])
    assert torch.equal(actual[0], want[0])
    for one, other in zip(actual[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dual_numbers_outside_torch_func() -> None:
    x, h, history, coefficients, keywords = make_case((2, 5), torch.float64, clip=False)
    tangent = make_input((2, 5), dtype=torch.float64, seed=33)
    with forward_ad.dual_level():
        out, m = solver_step(x, forward_ad.make_dual(h, tangent), history, coefficients, **keywords)
        torch.testing.assert_close(forward_ad.unpack_dual(m).tangent, coefficients[1] * tangent)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, coefficients[4] * coefficients[1] * tangent)


def test_torch_func() -> None:
    leaves, function = leaves_of(make_case((2, 3, 2), torch.float64, noise="given"))

    def of(op: Any) -> Any:
        return lambda *leaves: function(*leaves, op=op)

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        which = tuple(range(len(leaves))) if transform is not torch.func.hessian else (1, 2)
        actual = transform(of(solver_step), argnums=which)(*leaves)
        expected = transform(of(reference.solver_step), argnums=which)(*leaves)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    tangents = [make_input(tuple(t.shape), dtype=torch.float64, seed=70 + i) for i, t in enumerate(leaves)]
    actual = torch.func.jvp(of(solver_step), tuple(leaves), tuple(tangents))
    expected = torch.func.jvp(of(reference.solver_step), tuple(leaves), tuple(tangents))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mapped", ["x", "h", "m", "rows", "exponent", "noise", "samples", "all"])
@pytest.mark.parametrize("rows", [False, True])
def test_vmap(mapped: str, rows: bool) -> None:
    x, h, history, coefficients, keywords = make_case((2, 3, 4), noise="given" if mapped == "noise" else "drawn",
                                                      rows=rows)  # fmt: skip
    arguments = {"x": x, "h": h, "m": history[0], "rows": coefficients, **keywords}
    which = ["x", "h", "m", "rows", "exponent", "samples"] if mapped == "all" else [mapped]

    def step(values: dict[str, Tensor], others: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        given = {**others, **values}
        x, h, m, rows = (given.pop(name) for name in ("x", "h", "m", "rows"))
        return solver_step(x, h, [m], rows, **given)

    values = {name: torch.stack([arguments[name] + i for i in range(3)], 1) for name in which}
    others = {name: value for name, value in arguments.items() if name not in which}
    actual = torch.func.vmap(step, in_dims=(1, None))(values, others)
    for i in range(3):
        want = step({name: arguments[name] + i for name in which}, others)
        for k in range(2):
            assert torch.equal(actual[k][i], want[k])


def test_vmap_over_rng_is_refused() -> None:
    x, h, history, coefficients, keywords = make_case((2, 3), exponent=False)
    with pytest.raises(ValueError, match="rng must not be mapped by vmap; map samples instead"):
        torch.func.vmap(lambda rng: solver_step(x, h, history, coefficients, rng=rng, samples=keywords["samples"]))(
            RNG.expand(3, 2)
        )


# ------------------------------------------------------------------------------------------------ tracing


def positional(case: Case) -> tuple[Any, ...]:
    *arguments, keywords = case
    return (*arguments, *(keywords.get(name) for name in ("exponent", "noise", "rng", "samples")))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "expanded"])
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_opcheck(layout: str, noise: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case = make_case((3, 2, 4, 5), dtype, layout, noise=noise)
        torch.library.opcheck(RAW, positional(case))
        if layout != "expanded":
            torch.library.opcheck(RAW_, positional(laid_out(case, layout)))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes(device: str, layout: str) -> None:
    case = make_case((3, 2, 4, 5), torch.bfloat16, layout)
    real = call(case)
    with FakeTensorMode() as mode:

        def fake(t: Tensor) -> Tensor:
            made = mode.from_tensor(t)
            if device == "cpu":
                return made
            return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device="cuda")

        x, h, history, coefficients, keywords = case
        faked = (
            fake(x),
            fake(h),
            [fake(m) for m in history],
            fake(coefficients),
            {k: fake(v) for k, v in keywords.items()},
        )
        for made, one in zip(call(faked), real, strict=True):
            assert (made.shape, made.dtype, made.stride()) == (one.shape, one.dtype, one.stride())
            assert made.device.type == device
        if layout != "expanded":
            assert call(faked, solver_step_) is faked[0]


@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(grad: bool) -> None:
    torch._dynamo.reset()
    leaves, function = leaves_of(make_case((2, 3, 8, 8), torch.float64))
    leaves = [t.requires_grad_(grad) for t in leaves]

    def step(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return function(torch.sin(x), *rest)

    expected, actual = step(*leaves), torch.compile(step, fullgraph=True, backend="aot_eager")(*leaves)
    for k in range(2):
        assert torch.equal(actual[k], expected[k])
    if grad:
        for a, e in zip(
            *(torch.autograd.grad(out.square().sum() + m.sum(), leaves) for out, m in (actual, expected)), strict=True
        ):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
def test_compile_in_place_on_halves(grad: bool) -> None:
    torch._dynamo.reset()
    viewed, output = halves(make_case((2, 3, 8, 8)))
    x, _, history, coefficients, keywords = viewed

    def step(x: Tensor, output: Tensor, row: Tensor, rng: Tensor) -> tuple[Tensor, Tensor]:
        x, output = x * 1, output * 1
        for _ in range(2):
            h, v = output.chunk(2, 1)
            solver_step_(x, h, history, row, exponent=v, rng=rng, samples=keywords["samples"])
        return x, output

    arguments = x, output, coefficients.requires_grad_(grad), RNG
    actual, want = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments), step(*arguments)
    for one, other in zip(actual, want, strict=True):
        assert torch.equal(one, other)
    if grad:
        gradients = (torch.autograd.grad(out.square().sum(), coefficients)[0] for out, _ in (actual, want))
        torch.testing.assert_close(*gradients)


def test_compiled_torch_func() -> None:
    torch._dynamo.reset()
    x, h, history, coefficients, keywords = make_case((2, 3), torch.float64, clip=False)

    def tangent(h: Tensor) -> Tensor:
        return torch.func.jvp(lambda h: solver_step(x, h, history, coefficients, **keywords)[1], (h,), (h,))[1]

    torch.testing.assert_close(torch.compile(tangent, fullgraph=True, backend="aot_eager")(h), coefficients[1] * h)


def test_other_devices_run_the_reference() -> None:
    x, h, history, coefficients, _ = make_case((2, 3))
    outs = solver_step(x.to("meta"), h.to("meta"), [m.to("meta") for m in history], coefficients.to("meta"))
    assert [(out.device.type, out.shape) for out in outs] == [("meta", (2, 3))] * 2


# ------------------------------------------------------------------------------------------------ bad arguments

X, ROW = torch.zeros(2, 3), torch.zeros(8)
SHAPE = r"coefficients must have shape \(8,\) or \(2, 8\), that is \[p, q, c, a, b_0, b_1, s, e\]"
BAD = [
    *BAD_STATE,
    *BAD_OUTPUT,
    *BAD_HISTORY,
    (TypeError, "h must be a tensor, got NoneType", {"h": None}),
    (ValueError, "history must hold at most 3 tensors, got 4", {"history": [X] * 4}),
    (ValueError, rf"{SHAPE}, got \(7,\)", {"coefficients": torch.zeros(7)}),
    (ValueError, rf"{SHAPE}, got \(3, 8\)", {"coefficients": torch.zeros(3, 8)}),
    (TypeError, "exponent must be a tensor, got float", {"exponent": 0.5}),
    (ValueError, r"exponent must have the shape of x, \(2, 3\), got \(2, 1\)", {"exponent": X[:, :1]}),
    (TypeError, "exponent must have the dtype of x, torch.float32, got torch.bfloat16", {"exponent": X.bfloat16()}),
    *bad_coefficients(ROW),
    *BAD_NOISE,
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
@pytest.mark.parametrize("function", [solver_step, solver_step_])
def test_bad_arguments(function, error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X.clone(), "h": X.clone(), "history": [X], "coefficients": ROW} | changed
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**arguments)


@native
@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_the_native_library_refuses_what_would_crash_it(error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X, "h": X, "history": [X], "coefficients": ROW} | changed
    with pytest.raises(error, match=r"^solver_step(: |_cpu\(\): incompatible function arguments)"):
        _library.NATIVE.solver_step_cpu(**arguments)


@native
def test_overlapping_memory_is_refused_in_place() -> None:
    expanded = torch.zeros(1, 3).expand(2, 3)
    partial = r"partially overlap|some elements of the input tensor and the written-to"
    buffer = torch.zeros(7)
    left, right = buffer[:6].view(2, 3), buffer[1:].view(2, 3)
    for message, x, h, m, keywords in (
        ("single memory location", expanded, X, X, {}),
        (partial, left, right, X, {}),
        (partial, left, X, right, {}),
        (partial, left, X, X, {"noise": right}),
        (partial, left, X, X, {"noise": X, "exponent": right}),
    ):
        with pytest.raises(RuntimeError, match=message):
            solver_step_(x, h, [m], ROW, **keywords)

"""solver_step in Triton against the reference: tails, dtypes, layouts, clamping, noise, predictions, derivatives."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import linear_step, solver_step, solver_step_
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.solver_step import C, Case, S, call, laid_out, make_case

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# one element, less than a tile, more than one, whole Philox blocks of pixels and parts of them
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 300, 2, 3), (2, 3, 4, 5, 6))


def assert_parity(actual: tuple[Tensor, Tensor], case: Case) -> None:
    x, h, history, coefficients, keywords = case
    plain = call(case, reference.solver_step)
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    wide = x.double(), h.double(), [m.double() for m in history], coefficients.double(), in64
    oracle = call(wide, reference.solver_step)
    for name, one, low, exact in zip(("solver_step", "m"), actual, plain, oracle, strict=True):
        assert one.stride() == low.stride()
        # the oracle of float64 is the reference itself: 2 * 10 roundings of the largest number, less than 16 on average
        assert_error_within_budget(one, exact, low, name, factor=16.0 if x.dtype == torch.float64 else 2.0)


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str, device: torch.device) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for rows in (False, True):
            case = make_case(shape, dtype, layout, noise=noise, rows=rows, device=device)
            assert_parity(call(case), case)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_parity_by_layout_and_in_place(layout: str, device: torch.device) -> None:
    for noise in ("drawn", "given", "none"):
        case = make_case((4, 3, 6, 10), layout=layout, noise=noise, device=device)
        out, m = call(case)
        assert_parity((out, m), case)
        if layout == "expanded":
            continue  # cannot be written to
        for of_m in (None, "contiguous", "channels_last", "sliced"):
            again = laid_out(case, layout)
            kept = None if of_m is None else as_layout(torch.zeros_like(out), of_m)
            assert call(again, solver_step_, m=kept) is again[0]
            assert torch.equal(again[0], out)
            assert torch.equal(again[1], case[1])
            assert kept is None or torch.equal(kept, m)


@pytest.mark.parametrize("terms", range(4))
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exponent", [False, True])
def test_parity_by_terms(terms: int, clip: bool, exponent: bool, device: torch.device) -> None:
    for noise in ("drawn", "given", "none"):
        case = make_case((3, 157), terms=terms, noise=noise, clip=clip, exponent=exponent, device=device)
        out, m = call(case)
        assert_parity((out, m), case)
        assert bool((m.abs() == case[3][C]).any()) == clip
        assert (m.abs() <= case[3][C]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_far_from_zero(dtype: torch.dtype, device: torch.device) -> None:
    case = make_case((3, 157), dtype, clip=False, device=device)
    x = make_input((3, 157), mean=1e3, dtype=dtype, device=device)
    assert_parity(call((x, *case[1:])), (x, *case[1:]))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_halves_of_one_output(layout: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[int] = set()

    def recorded(*args: Any, **options: Any) -> None:
        read.update(t.data_ptr() for t in args if isinstance(t, Tensor))
        launch(*args, **options)

    monkeypatch.setattr(import_module("fastscore.kernels.solver_step"), "launch", recorded)
    for noise in ("drawn", "given"):
        x, h, history, coefficients, keywords = make_case((4, 3, 6, 10), noise=noise, device=device)
        out, m = solver_step(x, h, history, coefficients, **keywords)
        output = as_layout(torch.cat([h, keywords["exponent"]], 1), layout)
        before = output.clone()
        half, v = output.chunk(2, 1)
        x = as_layout(x, layout)
        moved = keywords | {"exponent": v}
        read.clear()
        for got, want in zip(solver_step(x, half, history, coefficients, **moved), (out, m), strict=True):
            assert torch.equal(got, want)
        in_place = {half.data_ptr(), v.data_ptr()} <= read
        assert in_place == (layout == "contiguous")  # in the other the halves have gaps, and are copied
        assert torch.equal(solver_step_(x, half, history, coefficients, **moved), out)
        assert torch.equal(output, before)


def test_operands_may_differ_in_layout(device: torch.device) -> None:
    x, h, history, coefficients, keywords = make_case((4, 3, 6, 10), terms=3, noise="given", rows=True, device=device)
    want = solver_step(x, h, history, coefficients, **keywords)
    mixed = [as_layout(m, layout) for m, layout in zip(history, LAYOUTS[1:4], strict=True)]
    table = coefficients.t().contiguous().t()
    for of_x, of_h, of_v in (
        ("channels_last", "sliced", "permuted"),
        ("sliced", "channels_last", "contiguous"),
        ("permuted", "contiguous", "channels_last"),
    ):
        moved = {"exponent": as_layout(keywords["exponent"], of_v), "noise": as_layout(keywords["noise"], of_h)}
        got = solver_step(as_layout(x, of_x), as_layout(h, of_h), mixed, table, **moved)
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)


def test_operands_that_overlap(device: torch.device) -> None:
    row = torch.tensor([0.9, -0.7, 1.1, 0.4, 0.6, 0.0, 0.0], device=device)
    memory = make_input((3, 40), device=device)
    with pytest.raises(RuntimeError, match="shares memory with the tensor that is written, in part"):
        solver_step_(memory[:2], memory[1:], [], row)
    h, z = make_input((3, 40), device=device, seed=1), make_input((3, 40), device=device, seed=2)
    for m in (memory, h, z):
        with pytest.raises(RuntimeError, match="a result shares memory with an operand"):
            solver_step_(memory, h, [], row, noise=z, m=m)
    # one tensor in several places, and one that is overwritten while samples still need it
    for output in (memory, memory[:1].expand(3, 40)):
        want, _ = solver_step(memory, output, [], row, noise=memory)
        state = memory.clone()
        output = state if output is memory else state[:1].expand(3, 40)
        assert torch.equal(solver_step_(state, output, [], row, noise=state), want)


def test_empty(device: torch.device) -> None:
    row = torch.ones(7, device=device)
    for shape in ((0, 3, 4, 4), (2, 0), (2, 3, 0, 4)):
        x = torch.empty(shape, device=device)
        assert [t.shape for t in solver_step(x, x, [], row)] == [shape, shape]
        solver_step_(x, torch.empty_like(x), [], row, m=torch.empty_like(x))
    assert not LAUNCHES
    call(make_case((1,), device=device))


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("rows", [False, True])
def test_noise_of_weight_zero_is_not_looked_at(noise: str, rows: bool, device: torch.device) -> None:
    case = make_case((3, 40), noise=noise, rows=rows, device=device)
    case[3][..., S] = 0
    if noise == "given":
        case[4]["noise"].fill_(math.nan)
    case[4]["exponent"].fill_(math.inf)
    want = solver_step(*case[:4])
    assert torch.isfinite(want[0]).all()
    for one, other in zip(call(case), want, strict=True):
        assert torch.equal(one, other)


def test_nan_and_infinity(device: torch.device) -> None:
    case = make_case((3, 40), exponent=False, device=device)
    x, h, history = case[:3]
    h[1, 7], x[2, 3], history[0][0, 1] = math.nan, math.nan, math.nan
    h[0, 0], h[0, 2] = math.inf, -math.inf
    out, m = call(case)
    assert torch.isnan(m).nonzero().tolist() == [[1, 7], [2, 3]]
    assert torch.isnan(out).nonzero().tolist() == [[0, 1], [1, 7], [2, 3]]
    assert m[0, [0, 2]].tolist() == [-case[3][C].item(), case[3][C].item()]
    case[3][C] = math.inf
    assert call(case)[1][0, [0, 2]].tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponential_at_its_ends(dtype: torch.dtype, device: torch.device) -> None:
    end = math.log(torch.finfo(dtype).max)
    v = torch.tensor([[-math.inf, -1e4, -end - 60, -0.0, 0.0, end + 1, 1e4, math.inf, math.nan]], dtype=dtype)
    v = v.to(device)
    row = torch.tensor([0.0, 0, 1, 0, 0, 2, 1], dtype=dtype, device=device)
    out, _ = solver_step(torch.zeros_like(v), torch.zeros_like(v), [], row, exponent=v, noise=torch.ones_like(v))
    want = torch.tensor([[0, 0, 0, 2, 2, math.inf, math.inf, math.inf, math.nan]], dtype=dtype, device=device)
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_noise_is_that_of_linear_step(dtype: torch.dtype, device: torch.device) -> None:
    for shape, layout in (((3, 2163), "contiguous"), ((3, 3, 5, 7), "channels_last")):
        x, h, _, _, keywords = make_case(shape, dtype, layout, exponent=False, device=device)
        row = torch.tensor([0.0, 1.0, math.inf, 0.3, 0.0, 1.7, 0.0], dtype=accumulation_dtype(dtype), device=device)
        out, m = solver_step(x, h, (), row, **keywords)
        assert torch.equal(out, linear_step(x, (), row[[3, 5]], **keywords))
        assert torch.equal(m, h)


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones."""
    cases = [
        make_case((2, 3, 8, 8), layout=layout, noise=noise, device=device)
        for layout in ("contiguous", "channels_last")
        for noise in ("drawn", "given")
    ]
    before = [call(case) for case in cases]
    module = import_module("fastscore.kernels.solver_step")  # not the function of the same name
    monkeypatch.setattr(module, "launch", lambda *args, **options: launch(*args, **(options | {"wide": True})))
    for case, want in zip(cases, before, strict=True):
        for one, other in zip(call(case), want, strict=True):
            assert torch.equal(one, other)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    for layout in ("contiguous", "channels_last"):
        x, h, history, coefficients, keywords = make_case((4, 3, 7, 9), layout=layout, device=device)
        whole = solver_step(x, h, history, coefficients, **keywords)
        for b in range(4):
            one = slice(b, b + 1)
            alone = {k: v if k == "rng" else v[one] for k, v in keywords.items()}
            for got, want in zip(
                solver_step(x[one], h[one], [m[one] for m in history], coefficients, **alone), whole, strict=True
            ):
                assert torch.equal(got[0], want[b])


def test_derivatives_run_on_the_kernel(device: torch.device) -> None:
    x, h, history, coefficients, keywords = make_case((2, 3, 4, 5), torch.float64, rows=True, device=device)
    drawn = {"rng": keywords["rng"], "samples": keywords["samples"]}
    inputs = [t.requires_grad_() for t in (x, h, coefficients, keywords["exponent"], *history)]

    def run(function: Any, x: Tensor, h: Tensor, rows: Tensor, v: Tensor, *history: Tensor) -> Tensor:
        return torch.stack(function(x, h, history, rows, exponent=v, **drawn))

    grad = torch.randn(2, *x.shape, dtype=x.dtype, device=device)
    got, want = (torch.autograd.grad(run(f, *inputs), inputs, grad) for f in (solver_step, reference.solver_step))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    values = tuple(t.detach() for t in inputs)
    tangents = tuple(torch.randn_like(t) for t in values)
    for one, other in zip(
        *(torch.func.jvp(lambda *a, f=f: run(f, *a), values, tangents) for f in (solver_step, reference.solver_step)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    many = torch.stack([values[0], 2 * values[0]])
    before = LAUNCHES["solver_step_kernel"]
    mapped = torch.func.vmap(lambda state: run(solver_step, state, *values[1:]))(many)
    assert LAUNCHES["solver_step_kernel"] == before + 1
    for one, state in zip(mapped, many, strict=True):
        torch.testing.assert_close(one, run(reference.solver_step, state, *values[1:]), rtol=1e-12, atol=1e-12)

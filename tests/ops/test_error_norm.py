"""error_norm: every version against the reference, what must not change a bit, what must not be lost, its traces."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from fastscore import _backend, _library, reference
from fastscore._checks import accumulation_dtype
from fastscore.ops import error_norm
from fastscore.ops._unchecked import unchecked
from fastscore.testing.error_norm import assert_parity, make_case
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.ops import (
    DTYPES,
    Rows,
    assert_bits_hold_by_batch,
    assert_bits_hold_by_threads_and_format,
    assert_one_native_launch,
    bad_coefficients,
    run_op_on,
)
from fastscore.testing.traffic import Traffic, no_host_sync

RAW = torch.ops.fastscore.error_norm.default
# One element a sample, less than a vector, several tiles; images of one tile, several, too many channels, one pixel.
SHAPES = ((3,), (2, 3), (3, 20163), (2, 3, 8, 8), (2, 5, 53, 41), (2, 300, 2, 3), (2, 7, 1, 1), (2, 3, 4, 5, 6))
KINDS = ("sum", "max")

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


# ------------------------------------------------------------------------------------------------ values


@native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for rows in (False, True):
            case = make_case(shape, dtype, layout, rows=rows, kind=kind)
            with _backend.backend("cpu"):
                actual = error_norm(*case[:4], **case[4])
            assert_parity(actual, case)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_by_layout(layout: str, dtype: torch.dtype) -> None:
    for kind in KINDS:
        case = make_case((4, 3, 6, 10), dtype, layout, rows=True, kind=kind)
        assert_parity(error_norm(*case[:4], **case[4]), case)


@native
@pytest.mark.parametrize("terms", range(1, 10))
def test_parity_by_terms(terms: int) -> None:
    for dtype in DTYPES:
        case = make_case((3, 500), dtype, terms=terms, rows=True)
        assert_parity(error_norm(*case[:4], **case[4]), case)


@native
@pytest.mark.parametrize(("atol", "rtol"), [(0.0, 1e-2), (1e-3, 0.0), (1e-5, 1e-3), (2.0, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_by_tolerance(atol: float, rtol: float, kind: str) -> None:
    for mean in (0.0, 1e3):
        *case, _ = make_case((3, 3, 16, 16))
        case[2] = make_input((3, 3, 16, 16), mean=mean, seed=7)
        keywords = {"atol": atol, "rtol": rtol, "kind": kind}
        assert_parity(error_norm(*case, **keywords), (*case, keywords))


@native
def test_operands_may_differ_in_layout() -> None:
    terms, coefficients, u, v, keywords = make_case((4, 3, 6, 10), rows=True)
    want = error_norm(terms, coefficients, u, v, **keywords)
    mixed = [as_layout(t, layout) for t, layout in zip(terms, ("channels_last", "sliced", "permuted"), strict=True)]
    for of_u in ("contiguous", "channels_last", "permuted", "sliced"):
        rows = coefficients.t().contiguous().t()
        assert torch.equal(error_norm(mixed, rows, as_layout(u, of_u), as_layout(v, "sliced"), **keywords), want)
    expanded = error_norm([t[:1].expand_as(t) for t in terms], coefficients, u, v, **keywords)
    assert torch.equal(expanded, error_norm([t[:1].repeat(4, 1, 1, 1) for t in terms], coefficients, u, v, **keywords))


@native
def test_views_of_one_tensor_are_told_apart() -> None:
    square = make_input((2, 3, 6, 6), "sliced")
    turned = square.transpose(2, 3)
    keywords = {"atol": 0.1, "rtol": 0.1}
    want = error_norm([square.clone()], torch.ones(1), square.clone(), turned.clone(), **keywords)
    assert torch.equal(error_norm([square], torch.ones(1), square, turned, **keywords), want)


@pytest.mark.parametrize("rows", [False, True])
def test_reference_is_the_published_norm(rows: bool) -> None:
    terms, coefficients, u, v, _ = make_case((2, 3, 4), torch.float64, rows=rows)
    v = -v
    for kind in KINDS:
        actual = reference.error_norm(terms, coefficients, u, v, atol=0.7, rtol=0.3, kind=kind)
        for b in range(2):
            total = 0.0
            for i in range(3):
                for j in range(4):
                    row = coefficients[b] if rows else coefficients
                    e = sum(float(c) * float(t[b, i, j]) for c, t in zip(row, terms, strict=True))
                    largest = max(abs(float(u[b, i, j])), abs(float(v[b, i, j])))
                    total += (e / (0.7 + 0.3 * largest if kind == "sum" else max(0.7, 0.3 * largest))) ** 2
            assert float(actual[b]) == pytest.approx(math.sqrt(total / 12), rel=1e-14)


def test_is_the_estimate_of_scipy() -> None:
    """The step of RK45 in SciPy: Dormand and Prince 1980, with the norm of Hairer et al."""
    integrate = pytest.importorskip("scipy.integrate")
    start = make_input((40,), dtype=torch.float64).numpy()
    solver = integrate.RK45(lambda t, y: t - y**3, 0.0, start, 1.0, rtol=1e-4, atol=1e-6)
    solver.step()
    scale = solver.atol + solver.rtol * abs(torch.tensor(start)).maximum(torch.tensor(solver.y).abs()).numpy()
    want = solver._estimate_error_norm(solver.K, solver.h_previous, scale)
    stages = list(torch.tensor(solver.K).unsqueeze(1))
    weights = torch.tensor(solver.E) * solver.h_previous
    for chosen in ("auto", "reference"):
        with _backend.backend(chosen):
            actual = error_norm(
                stages, weights, torch.tensor(start)[None], torch.tensor(solver.y)[None], atol=1e-6, rtol=1e-4
            )
        assert float(actual) == pytest.approx(want, rel=1e-12)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    terms, coefficients, u, v, keywords = make_case((4, 3, 6, 10), layout=layout)
    assert_one_native_launch("error_norm", layout, lambda: error_norm(terms, coefficients, u, v, **keywords))


@native
def test_raw_launcher_and_unchecked() -> None:
    terms, coefficients, u, v, keywords = make_case((4, 30), kind="max")
    want = error_norm(terms, coefficients, u, v, **keywords)
    assert torch.equal(_library.NATIVE.error_norm_cpu(terms, coefficients, u, v, **keywords), want)
    assert torch.equal(unchecked(u.device).error_norm(terms, coefficients, u, v, *keywords.values()), want)
    with _backend.backend("reference"):
        plain = unchecked(u.device).error_norm(terms, coefficients, u, v, *keywords.values())
    assert torch.equal(plain, reference.error_norm(terms, coefficients, u, v, **keywords))
    with pytest.raises(ValueError, match="error_norm_cpu: u must be a cpu tensor, got one on meta"):
        _library.NATIVE.error_norm_cpu(terms, coefficients, u.to("meta"), v, **keywords)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 0, 4, 4), (0,)])
def test_nothing_has_no_error(shape: tuple[int, ...], chosen: str) -> None:
    empty = torch.zeros(shape)
    with _backend.backend(chosen):
        out = error_norm([empty], torch.ones(1), empty, empty, atol=1.0, rtol=0.0)
    assert torch.equal(out, torch.zeros(shape[0]))


# ------------------------------------------------------------------------------------------------ extremes


@native
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["term", "u", "v", "u and term", "u and v"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_shows_in_its_sample(bad: float, where: str, kind: str) -> None:
    for dtype in DTYPES:
        for coefficients in (torch.tensor([0.5, -0.5]), torch.zeros(2)):  # also where the error is zero
            for atol, rtol in ((0.1, 0.1), (0.1, 0.0), (0.0, 0.1)):
                for place in (7, 36):  # in a whole vector, in the last part of one
                    u, v, first, second = (make_input((3, 37), dtype=dtype, mean=3.0, seed=k) for k in range(4))
                    for tensor, name in ((first, "term"), (u, "u"), (v, "v")):
                        if name in where:
                            tensor[1, place] = bad
                    terms = [u if where == "u and term" else first, second]
                    row = coefficients.to(accumulation_dtype(dtype))
                    keywords = {"atol": atol, "rtol": rtol, "kind": kind}
                    fused = error_norm(terms, row, u, v, **keywords)
                    plain = reference.error_norm(terms, row, u, v, **keywords)
                    assert torch.isfinite(fused).tolist() == torch.isfinite(plain).tolist() == [True, False, True]


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_scale_of_zero(kind: str, chosen: str) -> None:
    terms, _, u, v, _ = make_case((3, 40), terms=1)
    for tensor in (u, v, terms[0]):
        tensor[1:, 5:9] = 0
    terms[0][2, 6] = 1e-20
    with _backend.backend(chosen):
        out = error_norm(terms, torch.ones(1), u, v, atol=0.0, rtol=0.1, kind=kind)
    assert torch.isfinite(out).tolist() == [True, True, False]
    assert math.isinf(float(out[2]))
    kept = [t[1:2, torch.cat((torch.arange(5), torch.arange(9, 40)))] for t in (terms[0], u, v)]
    alone = reference.error_norm(kept[:1], torch.ones(1), *kept[1:], atol=0.0, rtol=0.1, kind=kind)
    torch.testing.assert_close(out[1:2], alone * math.sqrt(36 / 40))


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(chosen: str, size: float) -> None:
    term = make_input((3, 40), scale=size)
    with _backend.backend(chosen):
        out = error_norm([term], torch.ones(1), torch.zeros(3, 40), torch.zeros(3, 40), atol=1.0, rtol=0.0)
    torch.testing.assert_close(out, (term.double().square().mean(1).sqrt()).float(), rtol=1e-6, atol=0.0)


# ------------------------------------------------------------------------------------------------ to the last bit


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 5), (12, 3, 63, 51), (12, 256, 3, 5), (12, 300, 2, 3)])
def test_bits_do_not_depend_on_batch_threads_or_format(shape: tuple[int, ...], dtype: torch.dtype, threads) -> None:
    terms, coefficients, u, v, keywords = make_case(shape, dtype)

    def norm(rows: Rows, layout: str) -> Tensor:
        some = [as_layout(t[rows], layout) for t in (*terms, u, v)]
        return error_norm(some[:3], coefficients, *some[3:], **keywords)

    assert_bits_hold_by_batch(norm, assert_bits_hold_by_threads_and_format(norm, shape, threads))


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        make_case(shape, dtype, layout, terms, True, kind)
        for shape, layout in (((3, 2163), "contiguous"), ((2, 3, 7, 9), "contiguous"), ((2, 3, 7, 9), "channels_last"))
        for dtype in DTYPES
        for terms in (2, 9)
        for kind in KINDS
    ]
    broken = make_case((4, 40))
    for row, tensor in enumerate((broken[0][1], broken[2], broken[3])):
        tensor[row] = math.nan
    results = run_op_on(isa, "error_norm", [*cases, broken], tmp_path)
    assert torch.isfinite(results.pop()).tolist() == [False, False, False, True]
    for case, actual in zip(cases, results, strict=True):
        assert_parity(actual, case)
    pairs = len(cases) // 3  # the same cases in both formats
    for dense, last in zip(results[pairs : 2 * pairs], results[2 * pairs :], strict=True):
        assert torch.equal(dense, last)


# ------------------------------------------------------------------------------------------------ traffic


def test_each_distinct_tensor_is_read_once() -> None:
    x, lower, higher = (make_input((16, 200), seed=seed) for seed in range(3))
    row = torch.tensor([1.0, -1.0])
    for chosen_v, tensors in ((x, 3), (higher, 2)):
        with Traffic(x) as traffic:
            error_norm([lower, higher], row, lower, chosen_v, atol=1e-3, rtol=1e-2)
        assert traffic.count.by_op == {"fastscore::error_norm": (1, tensors)}


@native
@pytest.mark.parametrize(("layout", "copies"), [("contiguous", 0), ("channels_last", 0), ("sliced", 2)])
def test_copies_only_what_has_gaps_and_once(layout: str, copies: int) -> None:
    lower, higher = (make_input((4, 3, 6, 10), layout, seed=seed) for seed in range(2))
    row = torch.tensor([1.0, -1.0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        error_norm([lower, higher], row, lower, higher, atol=1e-3, rtol=1e-2)
    names = [event.name for event in profile.events()]
    assert names.count("fastscore::error_norm") == 1
    assert names.count("aten::copy_") == copies


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_reads_nothing_on_the_host(chosen: str) -> None:
    terms, coefficients, u, v, keywords = make_case((3, 40))
    with _backend.backend(chosen), no_host_sync():
        error_norm(terms, coefficients, u, v, **keywords)


# ------------------------------------------------------------------------------------------------ no derivatives


@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_is_detached(chosen: str) -> None:
    terms, coefficients, u, v, keywords = make_case((3, 40))
    want = error_norm(terms, coefficients, u, v, **keywords)
    with _backend.backend(chosen):
        leaves = [t.clone().requires_grad_() for t in (*terms, coefficients, u, v)]
        out = error_norm(leaves[:3], *leaves[3:], **keywords)
        assert not out.requires_grad
        torch.testing.assert_close(out, want)
        (gradient,) = torch.autograd.grad((leaves[4].sum(1) * out).sum(), leaves[4])
        torch.testing.assert_close(gradient, want[:, None].expand(3, 40))
        with forward_ad.dual_level():
            dual = error_norm(terms, coefficients, forward_ad.make_dual(u, torch.ones_like(u)), v, **keywords)
            assert forward_ad.unpack_dual(dual).tangent is None


def test_functorch() -> None:
    terms, coefficients, u, v, keywords = make_case((3, 40), torch.float64)

    def norm(u: Tensor) -> Tensor:
        return error_norm([*terms[:2], u], coefficients, u, v, **keywords)

    many = make_input((5, 3, 40), dtype=torch.float64, seed=9)
    torch.testing.assert_close(torch.func.vmap(norm)(many), torch.stack([norm(u) for u in many]))
    out, tangent = torch.func.jvp(norm, (u,), (torch.ones_like(u),))
    torch.testing.assert_close(out, norm(u))
    assert not tangent.any()
    assert not torch.func.grad(lambda u: norm(u).sum())(u).any()


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "expanded"])
def test_opcheck(layout: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for rows in (False, True):
            *tensors, keywords = make_case((3, 2, 4, 5), dtype, layout, rows=rows)
            torch.library.opcheck(RAW, (*tensors, *keywords.values()))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fake(dtype: torch.dtype, device: str) -> None:
    terms, coefficients, u, v, keywords = make_case((3, 2, 4, 5), dtype, "channels_last")
    real = error_norm(terms, coefficients, u, v, **keywords)
    assert (real.shape, real.dtype) == ((3,), accumulation_dtype(dtype))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        coefficients, u, v, *terms = (mode.from_tensor(t).to(device) for t in (coefficients, u, v, *terms))
        out = error_norm(terms, coefficients, u, v, **keywords)
    assert (out.shape, out.dtype, out.device.type, out.stride()) == (real.shape, real.dtype, device, real.stride())


@native
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compile(grad: bool, dynamic: bool) -> None:
    terms, coefficients, u, v, keywords = make_case((3, 2, 4, 5))
    u.requires_grad_(grad)

    def accepted(terms: list[Tensor], coefficients: Tensor, u: Tensor, v: Tensor) -> Tensor:
        norm = error_norm([*terms, u], coefficients, u, torch.sin(v), **keywords)
        return torch.where((norm < 1.5).reshape(-1, 1, 1, 1), u * norm.reshape(-1, 1, 1, 1), v)

    row = torch.cat((coefficients, torch.ones(1)))
    compiled = torch.compile(accepted, fullgraph=True, dynamic=dynamic)(terms, row, u, v)
    want = accepted(terms, row, u, v)
    torch.testing.assert_close(compiled, want)
    assert compiled.requires_grad == grad
    if grad:
        torch.testing.assert_close(torch.autograd.grad(compiled.sum(), u), torch.autograd.grad(want.sum(), u))


# ------------------------------------------------------------------------------------------------ bad input

U, ROW = torch.zeros(2, 3), torch.zeros(1)
BAD = [
    *bad_coefficients(ROW, of="u"),
    (TypeError, "u must be a tensor, got list", {"u": [1.0]}),
    (TypeError, "u must be float32, float64, bfloat16 or float16, got torch.int64", {"u": torch.zeros(2, 3).long()}),
    (ValueError, r"u must have a batch dimension, got shape \(\)", {"u": torch.zeros(())}),
    (ValueError, r"v must have the shape of u, \(2, 3\), got \(3, 2\)", {"v": torch.zeros(3, 2)}),
    (TypeError, "v must have the dtype of u, torch.float32, got torch.float64", {"v": U.double()}),
    (ValueError, "v must be on the device of u, cpu, got meta", {"v": U.to("meta")}),
    (TypeError, "terms must be a sequence of tensors, got a tensor", {"terms": U}),
    (ValueError, "terms must hold 1 to 9 tensors, got 0", {"terms": []}),
    (ValueError, "terms must hold 1 to 9 tensors, got 10", {"terms": [U] * 10}),
    (TypeError, r"terms\[0\] must be a tensor, got float", {"terms": [1.0]}),
    (TypeError, r"terms\[1\] must have the dtype of u, torch.float32, got torch.int8", {"terms": [U, U.char()]}),
    (ValueError, r"terms\[0\] must have the shape of u, \(2, 3\), got \(3, 2\)", {"terms": [U.t()]}),
    (ValueError, r"terms\[0\] must be on the device of u, cpu, got meta", {"terms": [U.to("meta")]}),
    (
        ValueError,
        r"coefficients must have shape \(2,\) or \(2, 2\), that is \[c_1, c_2\], got \(1,\)",
        {"terms": [U, U]},
    ),
    (ValueError, "kind must be 'sum' or 'max', got 'mean'", {"kind": "mean"}),
]
# What crashes nothing is checked in Python alone.
BAD_TOLERANCES = [
    (TypeError, "atol must be a float, got Tensor", {"atol": torch.tensor(0.1)}),
    (TypeError, "rtol must be a float, got bool", {"rtol": True}),
    (ValueError, "atol must be finite and at least 0, got -0.1", {"atol": -0.1}),
    (ValueError, "rtol must be finite and at least 0, got nan", {"rtol": math.nan}),
    (ValueError, "rtol must be finite and at least 0, got inf", {"rtol": math.inf}),
    (ValueError, "atol must be positive where rtol is 0, got 0.0", {"atol": 0.0, "rtol": 0}),
]
ARGUMENTS = {"terms": [U], "coefficients": ROW, "u": U, "v": U, "atol": 0.1, "rtol": 0.1}


@pytest.mark.parametrize(
    ("error", "message", "changed"), BAD + BAD_TOLERANCES, ids=[message[:40] for _, message, _ in BAD + BAD_TOLERANCES]
)
def test_bad_arguments(error: type[Exception], message: str, changed: dict) -> None:
    with pytest.raises(error, match=f"^error_norm: {message}"):
        error_norm(**ARGUMENTS | changed)


@native
@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_the_native_library_refuses_what_would_crash_it(error: type[Exception], message: str, changed: dict) -> None:
    with pytest.raises(error, match=r"^error_norm(: |_cpu\(\): incompatible function arguments)"):
        _library.NATIVE.error_norm_cpu(**ARGUMENTS | changed)

"""error_norm in Triton against the reference: shapes with tails, dtypes, layouts, tolerances, what must not be lost."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore.kernels import _sums
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import error_norm
from fastscore.testing.error_norm import Case, assert_parity, make_case
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# one element, less than a tile, more than one, whole Philox blocks of pixels and parts of them
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 300, 2, 3), (2, 7, 1, 1), (2, 3, 4, 5, 6))
KINDS = ("sum", "max")


def norm_of(case: Case) -> Tensor:
    return error_norm(*case[:4], **case[4])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, kind: str, device: torch.device) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for rows in (False, True):
            case = make_case(shape, dtype, layout, rows=rows, kind=kind, device=device)
            assert_parity(norm_of(case), case)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_by_layout(layout: str, kind: str, device: torch.device) -> None:
    case = make_case((4, 3, 6, 10), torch.float32, layout, rows=True, kind=kind, device=device)
    assert_parity(norm_of(case), case)


@pytest.mark.parametrize("terms", range(1, 10))
def test_parity_by_terms(terms: int, device: torch.device) -> None:
    for dtype in (torch.float32, torch.float64):
        case = make_case((3, 500), dtype, terms=terms, rows=True, device=device)
        assert_parity(norm_of(case), case)


@pytest.mark.parametrize(("atol", "rtol"), [(0.0, 1e-2), (1e-3, 0.0), (1e-5, 1e-3), (2.0, 1.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_parity_by_tolerance(atol: float, rtol: float, kind: str, device: torch.device) -> None:
    """In float64, too, where a tolerance that passed through float32 would show."""
    for mean in (0.0, 1e3):
        for dtype in (torch.float32, torch.float64):
            terms, coefficients, _, v, _ = make_case((3, 3, 8, 9), dtype, device=device)
            u = make_input((3, 3, 8, 9), mean=mean, dtype=dtype, device=device, seed=7)
            case = terms, coefficients, u, v, {"atol": atol, "rtol": rtol, "kind": kind}
            assert_parity(norm_of(case), case)


def test_tolerances_reach_the_kernel_in_float64(device: torch.device) -> None:
    """Triton passes a Python float in float32 unless told otherwise; its interpreter does not show that."""
    kernel = import_module("fastscore.kernels.error_norm").error_norm_kernel
    assert [kernel.fn.__annotations__[name] for name in ("atol", "rtol")] == ["tl.float64"] * 2
    norm_of(make_case((2, 3), device=device))


@pytest.mark.parametrize("shape", [(11, 5), (2, 9000)])
def test_many_samples_and_many_tiles(
    shape: tuple[int, ...], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More samples, and more tiles, than the second stage takes at once."""
    monkeypatch.setattr(_sums, "_AT_ONCE", 4)
    case = make_case(shape, device=device)
    assert_parity(norm_of(case), case)


def test_operands_may_differ_in_layout(device: torch.device) -> None:
    terms, coefficients, u, v, keywords = make_case((4, 3, 6, 10), rows=True, device=device)
    want = error_norm(terms, coefficients, u, v, **keywords)
    mixed = [as_layout(t, layout) for t, layout in zip(terms, ("channels_last", "sliced", "permuted"), strict=True)]
    rows = coefficients.t().contiguous().t()
    for of_u in ("contiguous", "permuted", "sliced"):
        assert torch.equal(error_norm(mixed, rows, as_layout(u, of_u), as_layout(v, "sliced"), **keywords), want)
    last = mixed, rows, as_layout(u, "channels_last"), v, keywords
    assert_parity(norm_of(last), last)
    expanded = error_norm([t[:1].expand_as(t) for t in terms], coefficients, u, v, **keywords)
    assert torch.equal(expanded, error_norm([t[:1].repeat(4, 1, 1, 1) for t in terms], coefficients, u, v, **keywords))


def test_a_tensor_in_several_places_is_read_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def recorded(kernel: Any, programs: int, of: torch.device, *args: Any, **options: Any) -> None:
        flat = [t for arg in args for t in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(t, Tensor)]
        read.append(sum(t.numel() for t in flat if t.shape == lower.shape))
        launch(kernel, programs, of, *args, **options)

    monkeypatch.setattr(import_module("fastscore.kernels.error_norm"), "launch", recorded)
    x, lower, higher = (make_input((4, 200), device=device, seed=seed) for seed in range(3))
    row = torch.tensor([1.0, -1.0], device=device)
    for v, tensors in ((x, 3), (higher, 2), (lower, 2)):
        read.clear()
        LAUNCHES.clear()
        got = error_norm([lower, higher], row, lower, v, atol=1e-3, rtol=1e-2)
        assert read == [tensors * lower.numel(), 0]
        assert LAUNCHES == {"error_norm_kernel": 1, "error_norm_roots_kernel": 1}
        want = error_norm([lower.clone(), higher.clone()], row, lower.clone(), v.clone(), atol=1e-3, rtol=1e-2)
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_lost(what: float, kind: str, device: torch.device) -> None:
    for rtol in (0.0, 0.1):
        for place in range(4):
            terms, coefficients, u, v, _ = make_case((3, 40), device=device)
            tensors = [terms[0], terms[1], u, v]
            tensors[place][1, 7] = what
            out = error_norm(tensors[:2], coefficients[:2], *tensors[2:], atol=0.5, rtol=rtol, kind=kind)
            assert torch.isfinite(out).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_at_scale_zero(kind: str, device: torch.device) -> None:
    zero, one = torch.zeros(3, 40, device=device), torch.ones(3, 40, device=device)
    row = torch.ones(1, device=device)
    assert torch.equal(error_norm([zero], row, zero, zero, atol=0.0, rtol=1e-3, kind=kind), zero[:, 0])
    assert torch.isinf(error_norm([one], row, zero, zero, atol=0.0, rtol=1e-3, kind=kind)).all()
    zero[1, 5] = 1  # has a scale, and an error
    out = error_norm([zero], row, zero, zero, atol=0.0, rtol=0.5, kind=kind)
    torch.testing.assert_close(out, torch.tensor([0.0, 2 / math.sqrt(40), 0.0], device=device))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(size: float, device: torch.device) -> None:
    term, zero = make_input((3, 40), scale=size, device=device), torch.zeros(3, 40, device=device)
    out = error_norm([term], torch.ones(1, device=device), zero, zero, atol=1.0, rtol=0.0)
    torch.testing.assert_close(out, term.double().square().mean(1).sqrt().float(), rtol=1e-6, atol=0.0)


def test_empty(device: torch.device) -> None:
    row = torch.ones(1, device=device)
    for shape in ((0, 3), (2, 0), (2, 0, 4, 4), (0,)):
        x = torch.empty(shape, device=device)
        assert torch.equal(error_norm([x], row, x, x, atol=1.0, rtol=0.0), torch.zeros(shape[0], device=device))
    assert not LAUNCHES
    norm_of(make_case((1,), device=device))


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones."""
    cases = [make_case((2, 3, 8, 8), layout=layout, device=device) for layout in ("contiguous", "channels_last")]
    before = [norm_of(case) for case in cases]
    wide = []

    def widened(*args: Any, **options: Any) -> None:
        wide.append("wide" in options)
        launch(*args, **(options | ({"wide": True} if "wide" in options else {})))

    monkeypatch.setattr(import_module("fastscore.kernels.error_norm"), "launch", widened)
    for case, want in zip(cases, before, strict=True):
        assert torch.equal(norm_of(case), want)
    assert wide == [True, False] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_row_does_not_depend_on_its_batch(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    terms, coefficients, u, v, keywords = make_case((4, 3, 27, 29), dtype, layout, device=device)
    whole = error_norm(terms, coefficients, u, v, **keywords)
    for b in range(4):
        one = slice(b, b + 1)
        alone = error_norm([t[one] for t in terms], coefficients, u[one], v[one], **keywords)
        assert torch.equal(alone[0], whole[b])


def test_memory_formats_agree(device: torch.device) -> None:
    """Squares are added up in float64 in another order: float32 does not show it, float64 does in its last digits."""
    for dtype, limit in ((torch.float32, 0.0), (torch.bfloat16, 0.0), (torch.float64, 8 * 2.0**-53)):
        for shape in ((3, 3, 27, 29), (3, 5, 32, 32)):
            dense, last = (
                norm_of(make_case(shape, dtype, layout, device=device)) for layout in ("contiguous", "channels_last")
            )
            torch.testing.assert_close(last, dense, rtol=limit, atol=0.0)


def test_is_detached(device: torch.device) -> None:
    terms, coefficients, u, v, keywords = make_case((3, 40), device=device)
    assert not error_norm(terms, coefficients, u.requires_grad_(), v, **keywords).requires_grad

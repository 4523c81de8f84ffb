"""attention in Triton against plain PyTorch: ragged shapes, dtypes, cuts, layouts, derivatives, what is launched."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore.kernels import _attention, _attention_plan
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import attention
from fastscore.testing.attention import (
    NAMES,
    QUANTITIES,
    assert_parity,
    eager,
    gradients,
    like,
    make_case,
    positional,
    tangents,
    values,
)
from fastscore.testing.inputs import make_input

KERNELS = import_module("fastscore.kernels.attention")  # not the function of the same name
LAUNCHERS = [import_module(f"fastscore.kernels._attention_{kind}") for kind in ("fwd", "jvp", "bwd")]
SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float64, torch.float16)]
SHAPES = ((2, 1, 16, 16, 32), (1, 2, 20, 35, 40), (1, 1, 33, 17, 80), (1, 2, 5, 64, 96), (1, 1, 18, 20, 160))
# queries and keys of a block, widest piece, width of a slice, resident: more than one of each
CUTS = {
    "pieces": (16, 16, 32, 128, True),
    "pieces read again": (32, 16, 16, 128, False),
    "slices": (32, 16, 32, 32, True),
    "slices read again": (16, 16, 64, 32, False),
}


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def choose(name: str) -> None:
        monkeypatch.setattr(_attention_plan, "plan_of", lambda *_: _attention_plan.Plan(*CUTS[name], 4, 1))

    return choose


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """What was launched: names, arguments, options."""
    seen = []

    def record(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
        seen.append((kernel.__name__, args, options))
        launch(kernel, programs, device, *args, **options)

    for module in LAUNCHERS:
        monkeypatch.setattr(module, "launch", record)
    return seen


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *SLOW], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, quantity: str, device: torch.device) -> None:
    case = make_case(shape, dtype, device=device)
    assert_parity(quantity, case, scale=0.3, output_scale=0.5**0.5)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CUTS)
def test_parity_by_cut(
    name: str, dtype: torch.dtype, quantity: str, cut: Callable[[str], None], device: torch.device
) -> None:
    cut(name)
    assert_parity(quantity, make_case((1, 1, 18, 20, 40), dtype, device=device), output_scale=0.7)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_parity_without_residual(quantity: str, device: torch.device) -> None:
    case = make_case((1, 2, 18, 19, 24), torch.float32, residual=False, device=device)
    assert_parity(quantity, case)
    assert_parity(quantity, case, output_scale=0.5)


@pytest.mark.parametrize("output_scale", [0.0, -2.0])
def test_any_output_scale(output_scale: float, device: torch.device) -> None:
    for quantity in QUANTITIES:
        assert_parity(quantity, make_case((1, 1, 16, 16, 16), device=device), output_scale=output_scale)


def test_a_residual_much_larger_than_what_it_is_added_to(device: torch.device) -> None:
    """Backward must not take the sum apart again: in 16 bits nothing would be left."""
    case = make_case((1, 1, 32, 64, 32), torch.bfloat16, device=device)
    case["residual"] = 100 * case["residual"]
    small = gradients(attention, case | {"residual": case["residual"] / 100})
    large = gradients(attention, case)
    for name in NAMES[:3]:
        assert torch.equal(small[name], large[name])


@pytest.mark.parametrize("quantity", ["value", "tangent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_whose_exponential_overflows(dtype: torch.dtype, quantity: str, device: torch.device) -> None:
    case = make_case((1, 2, 16, 40, 32), dtype, scale=30.0, device=device)
    assert (case["q"].float() @ case["k"].float().mT).max() * 32**-0.5 > 1000  # exp overflows from 88 on
    if dtype == torch.float32:
        assert_parity(quantity, case)
    else:  # plain PyTorch rounds the scores themselves to 16 bits, and looks at other keys
        actual = QUANTITIES[quantity](attention, case)
        exact = QUANTITIES[quantity](eager, {name: t.double() for name, t in case.items()})
        for name, result in actual.items():
            error = (result.double() - exact[name]).abs().max()
            assert error <= 4 * torch.finfo(dtype).eps * exact[name].abs().max()


def test_gradients_of_scores_far_below_zero(device: torch.device) -> None:
    """Padding has score 0: above all others here, and must still weigh nothing."""
    case = make_case((1, 1, 17, 19, 16), device=device)
    case["q"], case["k"] = case["q"].abs() + 20, -case["k"].abs() - 20
    for quantity in QUANTITIES:
        assert_parity(quantity, case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_all_scores_have_in_common_costs_no_digits_of_the_tangent(
    dtype: torch.dtype, device: torch.device
) -> None:
    """Adding the same to the tangent of every key moves no weight, and rounding it to 16 bits would ruin the rest."""
    case = make_case((1, 1, 32, 96, 32), dtype, residual=False, device=device)
    generator = torch.Generator().manual_seed(0)
    k_t = torch.randint(-3, 4, (1, 1, 96, 32), generator=generator).to(device, dtype)  # + 64 is exact

    def tangent(k_t: Tensor) -> Tensor:
        return torch.func.jvp(lambda k: attention(case["q"], k, case["v"]), (case["k"],), (k_t,))[1].double()

    plain, moved = tangent(k_t), tangent(k_t + 64)
    assert (plain - moved).abs().max() <= 2 * torch.finfo(dtype).eps * plain.abs().max()


@pytest.mark.parametrize("moved", ["q", "k", "v", "residual", "q v", "k residual"])
def test_tangents_that_are_not_there(moved: str, device: torch.device, launched: list[Any]) -> None:
    case = make_case((1, 2, 17, 19, 24), device=device)
    along = {name: t for name, t in like(case, 60).items() if name in moved.split()}

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        def call(*moving: Tensor) -> Tensor:
            return values(function, case | dict(zip(along, moving, strict=True)), output_scale=0.7)["y"]

        return torch.func.jvp(call, tuple(case[name] for name in along), tuple(along.values()))

    torch.testing.assert_close(run(attention), run(eager), rtol=1e-12, atol=1e-13)
    assert [name for name, *_ in launched] == ["attention_jvp_kernel"], "value and tangent come from one kernel"


def test_what_is_launched(device: torch.device, launched: list[Any]) -> None:
    case = make_case((1, 1, 16, 16, 16), device=device)
    values(attention, case)
    gradients(attention, case)
    kinds = ["fwd", "fwd", "delta", "grad_q", "grad_kv"]
    assert [name for name, *_ in launched] == [f"attention_{kind}_kernel" for kind in kinds]


@pytest.mark.parametrize("layout", ["rows", "packed", "sliced", "transposed"])
def test_layouts_are_read_in_place(layout: str, device: torch.device, launched: list[Any]) -> None:
    case = make_case((1, 2, 18, 18, 16), device=device)
    q, k, v, residual = case.values()
    if layout == "rows":
        moved = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    elif layout == "packed":
        moved = [t.transpose(1, 2) for t in torch.stack([t.transpose(1, 2) for t in (q, k, v)], 2).unbind(2)]
    elif layout == "transposed":  # columns apart: copied
        moved = [t.mT.contiguous().mT for t in (q, k, v)]
    else:
        moved = [torch.nn.functional.pad(t, (1, 2, 1, 1), value=float("nan"))[:, :, 1:-1, 1:-2] for t in (q, k, v)]
    image = residual.mT.contiguous().mT  # as an image has it: channels slowest
    other = case | dict(zip(NAMES, [*moved, image], strict=True))
    for quantity, compute in QUANTITIES.items():
        want = compute(attention, case, output_scale=0.7)
        launched.clear()
        got = compute(attention, other, output_scale=0.7)
        for name in want:
            assert torch.equal(got[name], want[name]), (quantity, name)
        read = {t.data_ptr() for _, args, _ in launched for t in args if isinstance(t, Tensor)}
        assert image.data_ptr() in read
        assert ({t.data_ptr() for t in moved} <= read) == (layout != "transposed")


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_offsets_of_64_bits(quantity: str, device: torch.device, launched: list[Any], monkeypatch: Any) -> None:
    """What tensors of large strides take, on small ones."""
    case = make_case((1, 2, 18, 19, 24), device=device)
    want = QUANTITIES[quantity](attention, case)
    for module in LAUNCHERS:
        monkeypatch.setattr(module, "is_wide", lambda *_: True)
    launched.clear()
    got = QUANTITIES[quantity](attention, case)
    assert all(options["wide"] for _, _, options in launched)
    for name in want:
        assert torch.equal(got[name], want[name])


def test_large_strides_take_offsets_of_64_bits(device: torch.device) -> None:
    q = torch.empty_strided((1, 1, 1, 4), (1, 1, 2**22, 1), device="meta")
    assert _attention.is_wide(None, q)
    assert not _attention.is_wide(None, make_case((1, 1, 4, 4, 4), device=device)["q"])
    values(attention, make_case((1, 1, 1, 1, 4), device=device))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_sample_does_not_depend_on_its_batch(quantity: str, device: torch.device) -> None:
    case = make_case((2, 2, 18, 35, 16), torch.float32, device=device)
    whole = QUANTITIES[quantity](attention, case, output_scale=0.7)
    for b in range(2):
        grad = make_input((2, 2, 18, 16), dtype=torch.bfloat16, device=device, seed=40).float()
        alone = {name: t[b : b + 1] for name, t in case.items()}
        call = positional(attention, output_scale=0.7)
        if quantity == "value":
            got = {"y": call(*alone.values())}
        elif quantity == "gradient":
            leaves = [t.clone().requires_grad_() for t in alone.values()]
            got = dict(zip(NAMES, torch.autograd.grad(call(*leaves), leaves, grad[b : b + 1]), strict=True))
        else:
            along = tuple(t[b : b + 1] for t in like(case, 60).values())
            got = dict(zip(("y", "y_t"), torch.func.jvp(call, tuple(alone.values()), along), strict=True))
        for name, result in got.items():
            assert torch.equal(result[0], whole[name][b]), name


def test_empty(device: torch.device) -> None:
    for b, n in ((0, 3), (2, 0)):
        case = make_case((b, 2, n, 4, 3), device=device)
        assert values(attention, case)["y"].shape == (b, 2, n, 3)
        assert tangents(attention, case)["y_t"].shape == (b, 2, n, 3)
        assert all((g == 0).all() and g.shape == case[name].shape for name, g in gradients(attention, case).items())
    assert not LAUNCHES
    values(attention, make_case((1, 1, 1, 1, 1), device=device))


def test_nan_reaches_its_row_and_no_other(device: torch.device) -> None:
    case = make_case((1, 1, 20, 20, 16), torch.float32, device=device)
    good = values(attention, case)["y"]
    case["q"][0, 0, 7, 3] = float("nan")
    y = values(attention, case)["y"]
    assert y[0, 0, 7].isnan().all()
    assert torch.equal(y[0, 0, :7], good[0, 0, :7])
    assert torch.equal(y[0, 0, 8:], good[0, 0, 8:])


@pytest.mark.parametrize("transform", ["vmap jvp", "vmap vjp", "fwd over rev", "rev over fwd", "second tangent"])
def test_derivatives_run_on_the_kernels(transform: str, device: torch.device) -> None:
    case = make_case((1, 2, 5, 6, 4), device=device)
    tensors, along = tuple(case.values()), tuple(like(case, 60).values())
    probes = make_input((3, 1, 2, 5, 4), dtype=torch.float64, device=device, seed=9)
    func, every = torch.func, tuple(range(4))

    def derivative(function: Callable[..., Tensor]) -> Any:
        call = positional(function, output_scale=0.7)

        def tangent(*t: Tensor) -> Tensor:
            return func.jvp(call, t, along)[1]

        if transform == "vmap jvp":
            return func.vmap(lambda p: func.jvp(lambda q: call(q, *tensors[1:]), tensors[:1], (p,)))(probes)
        if transform == "vmap vjp":
            return func.vmap(func.vjp(call, *tensors)[1])(probes)
        if transform == "fwd over rev":
            return func.jvp(func.grad(lambda *t: call(*t).square().sum(), argnums=every), tensors, along)
        if transform == "rev over fwd":
            return func.grad(lambda *t: tangent(*t).square().sum(), argnums=every)(*tensors)
        return func.jvp(tangent, tensors, along)

    torch.testing.assert_close(derivative(attention), derivative(eager), rtol=1e-11, atol=1e-12)


def test_log_sum_exp(device: torch.device) -> None:
    case = make_case((2, 2, 17, 19, 24), device=device)
    q, k, v = (case[name] for name in NAMES[:3])
    _, attended, lse = KERNELS.attention_fwd(q, k, v, case["residual"], 0.3, 0.7, True)
    torch.testing.assert_close(lse, torch.logsumexp(0.3 * q @ k.mT, -1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(attended, reference.attention(q, k, v, scale=0.3), rtol=1e-12, atol=1e-13)
    other = KERNELS.attention_jvp(q, k, v, case["residual"], q, k, v, None, 0.3, 0.7, True)
    assert torch.equal(other[3], lse)
    assert torch.equal(other[2], attended)


def test_float32_is_not_rounded_to_tf32_unless_torch_may(device: torch.device, launched: list[Any]) -> None:
    case = make_case((1, 1, 4, 4, 4), torch.float32, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            values(attention, case)
        values(attention, make_case((1, 1, 4, 4, 4), torch.float64, device=device))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert [options["precision"] for _, _, options in launched] == ["ieee", "tf32", "ieee"]


@pytest.mark.parametrize("largest", [16, 64, 128])
@pytest.mark.parametrize("size", [1, 16, 32, 40, 72, 80, 96, 160, 320, 512])
def test_pieces_cover_every_column_once(size: int, largest: int, device: torch.device) -> None:
    pieces = _attention_plan.pieces_of(size, largest)
    end = 0
    for start, width, beyond in pieces:
        assert start == end
        assert 16 <= width <= largest
        assert width & (width - 1) == 0
        end = start + width
        assert beyond == (end > size)
    assert size <= end < size + 16 + size / 4
    values(attention, make_case((1, 1, 1, 1, 1), device=device))

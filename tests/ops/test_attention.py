"""attention: every derivative against plain PyTorch, what is in memory meanwhile, traces, layouts, bad arguments."""

import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastscore import _backend, _library, reference
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
from fastscore.testing.ops import DTYPES, Bad

RAW = {kind: getattr(torch.ops.fastscore, f"attention_{kind}").default for kind in ("fwd", "bwd", "jvp")}
FLASH = "_scaled_dot_product_flash_attention_for_cpu"
SPECIFICATION = importlib.import_module("fastscore.reference.attention")
SHAPES = ((2, 1, 16, 16, 32), (1, 3, 7, 11, 40), (2, 2, 33, 5, 20), (1, 2, 1, 9, 96), (1, 1, 65, 64, 160))  # B H N M D


class Calls(TorchDispatchMode):
    """Counts the operators that run, and remembers the size of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names[function.overloadpacket.__name__] += 1
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


# ------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_parity(backend: str, shape: tuple[int, ...], dtype: torch.dtype, quantity: str) -> None:
    with _backend.backend(backend):
        assert_parity(quantity, make_case(shape, dtype, residual=False))
        assert_parity(quantity, make_case(shape, dtype), scale=0.3, output_scale=0.5**0.5)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_scores_whose_exponential_overflows(quantity: str) -> None:
    case = make_case((1, 2, 9, 13, 32), torch.float32, scale=30.0)
    scores = case["q"] @ case["k"].mT * 32**-0.5
    assert scores.max() > 1000  # exp overflows from 88 on
    if quantity != "gradient":
        assert_parity(quantity, case)
        return
    # The weights are 0 and 1, and the exact gradients of q and k are 0: grad v^T of the key that is looked at, minus
    # delta. Both are sums of 32 products, so that their difference is a rounding error, times what it multiplies.
    results = gradients(attention, case)
    for name in ("q", "k"):
        other = case["k" if name == "q" else "q"]
        assert results[name].abs().max() <= 32 * torch.finfo(torch.float32).eps * other.abs().max()
    low = {name: results[name] for name in ("v", "residual")}
    torch.testing.assert_close(low, {name: t for name, t in gradients(eager, case).items() if name in low})


@pytest.mark.parametrize("function", [F.scaled_dot_product_attention, eager])
def test_equals_what_torch_has(function: Callable[..., Tensor]) -> None:
    case = make_case((2, 3, 17, 21, 24), residual=False)
    leaves = [t.requires_grad_() for t in case.values()]
    grad = make_input((2, 3, 17, 24), dtype=torch.float64, seed=40)
    for keywords in ({}, {"scale": 0.2}):
        actual, expected = attention(*leaves, **keywords), function(*leaves, **keywords)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
        for got, want in zip(
            torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_fused_attention_of_torch_has_no_forward_mode() -> None:
    """What this op is for; when torch learns it, this fails, and the docs are to be changed."""
    q = make_input((1, 1, 4, 8))
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda q: F.scaled_dot_product_attention(q, q, q), (q,), (q,))
    torch.func.jvp(lambda q: attention(q, q, q), (q,), (q,))


def test_reference_is_the_formula() -> None:
    case = make_case((2, 2, 5, 7, 6))
    for keywords in ({}, {"scale": 0.7, "output_scale": -1.5}):
        actual, expected = (values(f, case, **keywords)["y"] for f in (reference.attention, eager))
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-14)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("samples", [1, 3])
def test_blocks_of_queries(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one sample, whole samples, and a rest of both."""
    case = make_case((4, 2, 7, 5, 6))
    whole = [compute(attention, case, output_scale=0.7) for compute in QUANTITIES.values()]
    monkeypatch.setattr(SPECIFICATION, "SCORES", 2 * 5 * 8 * (3 if samples == 1 else 7 * samples))
    for compute, want in zip(QUANTITIES.values(), whole, strict=True):
        torch.testing.assert_close(compute(attention, case, output_scale=0.7), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_no_matrix_of_scores_in_memory(quantity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    n, limit = 512, 64 * 1024
    monkeypatch.setattr(SPECIFICATION, "SCORES", limit)
    case = make_case((1, 1, n, n, 16), torch.float32)
    with Calls() as calls:
        QUANTITIES[quantity](attention, case)
    assert calls.largest <= limit < n * n * 4


# ------------------------------------------------------------------------------------------------ what runs


def test_value_and_tangent_come_from_one_call() -> None:
    case = make_case((1, 2, 5, 7, 6))
    with Calls() as calls:
        tangents(attention, case)
    assert calls.names["attention_jvp"] == 1
    assert calls.names["attention_fwd"] == 0


@pytest.mark.parametrize("moved", ["q", "k", "v", "residual", "q v"])
def test_tangents_that_are_not_there_are_not_passed(moved: str) -> None:
    case = make_case((1, 2, 5, 7, 6))
    along = {name: t for name, t in like(case, 60).items() if name in moved.split()}

    def run(function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        def call(*moving: Tensor) -> Tensor:
            return values(function, case | dict(zip(along, moving, strict=True)), output_scale=0.7)["y"]

        return torch.func.jvp(call, tuple(case[name] for name in along), tuple(along.values()))

    seen = []

    class Arguments(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is RAW["jvp"]:
                seen.append([name for name, t in zip(NAMES, args[4:8], strict=True) if t is not None])
            return function(*args, **(kwargs or {}))

    with Arguments():
        actual = run(attention)
    assert seen == [list(along)]
    torch.testing.assert_close(actual, run(eager), rtol=1e-12, atol=1e-13)


def test_a_tangent_that_is_only_looked_at_costs_no_second_derivative() -> None:
    """Consistency training: the loss has the value differentiated, and the tangent detached."""
    case = make_case((1, 2, 5, 7, 6))
    leaves = [t.requires_grad_() for t in case.values()]
    along = tuple(like(case, 60).values())

    def loss(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y, y_t = torch.func.jvp(positional(function, output_scale=0.7), tuple(leaves), along)
        return torch.autograd.grad((y - y_t.detach()).square().sum(), leaves)

    with Calls() as calls:
        actual = loss(attention)
    assert {name: n for name, n in calls.names.items() if "attention" in name} == {
        "attention_jvp": 1,
        f"{FLASH}_backward": 1,
    }
    torch.testing.assert_close(actual, loss(eager), rtol=1e-12, atol=1e-13)


def test_torch_runs_where_its_own_kernel_is_the_better_one() -> None:
    case = make_case((1, 2, 5, 7, 6))

    def ran(**changes: Tensor | None) -> set[str]:
        with Calls() as calls:
            values(attention, case | changes)
        return {name for name in calls.names if "attention" in name}

    torchs = {FLASH}
    assert ran() == torchs
    low = {name: t.bfloat16() for name, t in case.items()}
    assert ran(**low) == {"attention_fwd"}
    assert ran(**low | {"residual": None}) == torchs
    assert ran(q=case["q"].mT.contiguous().mT) == {"attention_fwd"}, "torch would write the scores to memory"
    needed = {"q": case["q"].detach().requires_grad_()}
    assert ran(**needed) == torchs
    assert ran(**low | {"q": low["q"].requires_grad_(), "residual": None}) == {"attention_fwd"}, (
        "its weights are bfloat16"
    )
    with _backend.backend("reference"):
        assert ran() == set()


@pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
def test_the_backend_of_the_cpu_can_be_asked_for() -> None:
    case = make_case((1, 2, 5, 7, 6))
    for compute in QUANTITIES.values():
        with _backend.backend("cpu"), Calls() as calls:
            compute(attention, case)
        assert {name for name in calls.names if "attention" in name} <= {"attention_" + kind for kind in RAW}


def test_only_what_needs_a_gradient_gets_one() -> None:
    case = make_case((1, 2, 5, 7, 6))
    case["residual"].requires_grad_()
    with Calls() as calls:
        values(attention, case)["y"].sum().backward()
    assert calls.names["attention_bwd"] == 0
    assert case["residual"].grad is not None
    assert case["q"].grad is None


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck(residual: bool, chosen: str) -> None:
    case = make_case((2, 2, 2, 3, 2), residual=residual)
    leaves = [t.requires_grad_() for t in case.values()]
    call = positional(attention, output_scale=0.7 if residual else 1.0)
    with _backend.backend(chosen):
        assert torch.autograd.gradcheck(
            call, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=chosen == "auto"
        )
        assert torch.autograd.gradgradcheck(call, leaves, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize(
    "transform", ["jacrev", "jacfwd", "hessian", "rev over rev", "rev over fwd", "fwd over fwd", "fwd over vmap"]
)
def test_torch_func(transform: str) -> None:
    case = make_case((2, 2, 2, 3, 2))
    tensors, along = tuple(case.values()), tuple(like(case, 60).values())
    func, every = torch.func, tuple(range(4))

    def derivative(function: Callable[..., Tensor]) -> Any:
        call = positional(function, output_scale=0.7)

        def squared(*t: Tensor) -> Tensor:
            return call(*t).square().sum()

        def tangent(*t: Tensor) -> Tensor:
            return func.jvp(call, t, along)[1]

        if transform == "rev over rev":
            return func.jacrev(func.grad(squared, argnums=every), argnums=every)(*tensors)
        if transform == "rev over fwd":
            return func.grad(lambda *t: tangent(*t).square().sum(), argnums=every)(*tensors)
        if transform == "fwd over fwd":
            return func.jvp(tangent, tensors, along)
        if transform == "fwd over vmap":
            stacked, moving = (tuple(torch.stack([t, 2 * t]) for t in group) for group in (tensors, along))
            return func.jvp(func.vmap(call), stacked, moving)
        return getattr(func, transform)(squared if transform == "hessian" else call, argnums=every)(*tensors)

    torch.testing.assert_close(derivative(attention), derivative(eager), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mapped", [*NAMES, "all"])
@pytest.mark.parametrize("quantity", ["value", "vjp", "jvp", "hvp"])
def test_vmap(quantity: str, mapped: str) -> None:
    """Every tensor mapped alone, with the others shared, and all together, in each kind of derivative."""
    case = make_case((2, 2, 3, 4, 2))
    tensors = [torch.stack([t, 2 * t, t - 1], -1) if mapped in (name, "all") else t for name, t in case.items()]
    dims = tuple(-1 if mapped in (name, "all") else None for name in case)
    grad_y = make_input((2, 2, 3, 2), dtype=torch.float64, seed=8)
    along = tuple(like(case, 60).values())

    def compute(function: Callable[..., Tensor]) -> Any:
        call = positional(function, output_scale=0.7)

        def one(*t: Tensor) -> Any:
            if quantity == "vjp":
                return torch.func.vjp(call, *t)[1](grad_y)
            if quantity == "jvp":
                return torch.func.jvp(call, t, along)
            if quantity == "hvp":
                return torch.func.jvp(lambda *s: torch.func.vjp(call, *s)[1](grad_y), t, along)
            return call(*t)

        return torch.func.vmap(one, in_dims=dims)(*tensors)

    torch.testing.assert_close(compute(attention), compute(eager), rtol=1e-11, atol=1e-12)


def test_probes_over_one_point() -> None:
    """vmap(vjp) and vmap(jvp) with only the probe mapped, as trace estimators do."""
    case = make_case((2, 2, 3, 3, 4))
    probes = make_input((5, 2, 2, 3, 4), dtype=torch.float64, seed=9)

    def products(function: Callable[..., Tensor]) -> tuple[Any, Any]:
        def f(x: Tensor) -> Tensor:
            return function(x, x * case["k"], case["v"], residual=x)

        forward = torch.func.vmap(lambda p: torch.func.jvp(f, (case["q"],), (p,))[1])(probes)
        return forward, torch.func.vmap(torch.func.vjp(f, case["q"])[1])(probes)

    torch.testing.assert_close(products(attention), products(eager), rtol=1e-11, atol=1e-12)


def test_dual_numbers_outside_torch_func() -> None:
    case = make_case((2, 2, 3, 4, 2))
    along = like(case, 60)
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(t, along[name]) for name, t in case.items()}
        tangent = forward_ad.unpack_dual(values(attention, duals)["y"]).tangent
    torch.testing.assert_close(tangent, tangents(eager, case)["y_t"], rtol=1e-12, atol=1e-13)


# ------------------------------------------------------------------------------------------------ layouts


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("layout", ["rows", "packed", "packed rows", "transposed", "expanded", "sliced"])
def test_layouts(layout: str, quantity: str) -> None:
    case = make_case((2, 3, 5, 5, 4))
    want = QUANTITIES[quantity](attention, case, output_scale=0.7)
    q, k, v = (case[name] for name in NAMES[:3])
    if layout == "rows":
        moved = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    elif layout == "packed":
        moved = list(torch.stack((q, k, v), 2).unbind(2))
    elif layout == "packed rows":
        moved = list(torch.stack((q, k, v), 1).permute(0, 3, 1, 2, 4).contiguous().permute(2, 0, 3, 1, 4).unbind(0))
    elif layout == "transposed":
        moved = [t.mT.contiguous().mT for t in (q, k, v)]
    elif layout == "sliced":
        moved = [F.pad(t, (1, 2, 1, 1), value=float("nan"))[:, :, 1:-1, 1:-2] for t in (q, k, v)]
    else:
        if quantity == "tangent":
            pytest.skip("torch makes no dual number of an expanded tensor")
        moved = [t[:1].expand_as(t) for t in (q, k, v)]
        want = QUANTITIES[quantity](attention, case | dict(zip(NAMES, map(torch.clone, moved), strict=False)))
    got = QUANTITIES[quantity](
        attention, case | dict(zip(NAMES, moved, strict=False)), output_scale=1.0 if layout == "expanded" else 0.7
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
def test_results_lie_in_memory_like_q(residual: bool, dtype: torch.dtype) -> None:
    """So joining the heads again is free where splitting them was."""
    case = make_case((2, 3, 5, 7, 4), dtype, residual)
    layouts = {
        "heads": {},
        "rows": {"q": case["q"].transpose(1, 2).contiguous().transpose(1, 2)},
        "packed": {"q": torch.stack([case["q"].transpose(1, 2)] * 3, 2)[:, :, 0].transpose(1, 2)},
        "transposed": {"q": case["q"].mT.contiguous().mT},
    }
    for layout, q in layouts.items():
        moved = case | q
        results = values(attention, moved)["y"], tangents(attention, moved)["y_t"], gradients(attention, moved)["q"]
        for y in results:
            joined = y.transpose(1, 2).is_contiguous()
            # torch's kernel joins the heads whatever q looks like
            assert joined or (layout in ("heads", "transposed") and y.is_contiguous()), layout


def test_empty() -> None:
    for b, n in ((0, 3), (2, 0)):
        case = make_case((b, 2, n, 4, 3))
        for keywords in ({}, {"output_scale": 0.7}):
            assert values(attention, case, **keywords)["y"].shape == (b, 2, n, 3)
            assert tangents(attention, case, **keywords)["y_t"].shape == (b, 2, n, 3)
            for name, gradient in gradients(attention, case, **keywords).items():
                assert gradient.shape == case[name].shape
                assert (gradient == 0).all()


def test_a_value_does_not_depend_on_its_batch() -> None:
    """Derivatives may: torch's products of matrices give other bits in other batches."""
    case = make_case((5, 2, 19, 23, 24), torch.float32, residual=False)
    whole = values(attention, case)["y"]
    for b in range(5):
        alone = values(attention, {name: t[b : b + 1] for name, t in case.items()})["y"]
        assert torch.equal(alone[0], whole[b])


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("residual", [True, False])
def test_opcheck(residual: bool) -> None:
    case = make_case((2, 2, 3, 5, 4), torch.float32, residual)
    q, k, v = (case[name] for name in NAMES[:3])
    r, c = (case["residual"], 0.7) if residual else (None, 1.0)
    for keep in (True, False):
        y, attended, lse = RAW["fwd"](q, k, v, r, 0.5, c, keep)
        torch.library.opcheck(RAW["fwd"], (q, k, v, r, 0.5, c, keep))
        torch.library.opcheck(RAW["jvp"], (q, k, v, r, q, None, v, r, 0.5, c, keep))
    y, attended, lse = RAW["fwd"](q, k, v, r, 0.5, c, True)
    torch.library.opcheck(RAW["bwd"], (y, q, k, v, attended if residual else y, lse, 0.5, c))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
def test_fakes(residual: bool, dtype: torch.dtype, device: str) -> None:
    case = make_case((2, 3, 5, 7, 8), dtype, residual)
    real = values(attention, case)["y"]
    with FakeTensorMode():
        fake = {name: torch.empty(t.shape, dtype=dtype, device=device) for name, t in case.items()}
        q, k, v, r = (fake.get(name) for name in NAMES)
        out, attended, lse = RAW["fwd"](q, k, v, r, 0.5, 1.0, True)
        results = [
            out,
            *RAW["jvp"](q, k, v, r, q, k, v, r, 0.5, 1.0, True)[:2],
            RAW["bwd"](out, q, k, v, attended if residual else out, lse, 0.5, 1.0)[0],
            values(attention, fake)["y"],
            tangents(lambda *t, **keywords: attention(*t, **keywords), fake)["y_t"] if device == "cpu" else out,
        ]
        assert lse.device.type == device
        if device == "cuda" and dtype == torch.bfloat16 and not residual:
            assert results.pop(4).shape == real.shape  # torch's own, with strides of its own
        for result in results:
            assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())
            assert result.device.type == device


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_compile(residual: bool, dynamic: bool) -> None:
    torch._dynamo.reset()
    counters.clear()

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def call(*tensors: Tensor) -> Tensor:
        return positional(attention, output_scale=0.7 if residual else 1.0)(tensors[0] * 2, *tensors[1:]) + 1

    for size in (4, 5, 7):
        case = make_case((size, 2, size + 20, size + 30, 12), torch.float32, residual)
        leaves = [t.requires_grad_() for t in case.values()]
        expected = positional(attention, output_scale=0.7 if residual else 1.0)(leaves[0] * 2, *leaves[1:]) + 1
        actual = call(*leaves)
        assert torch.equal(actual, expected)
        for a, e in zip(
            torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            assert torch.equal(a, e)
        with torch.no_grad():
            torch.testing.assert_close(call(*leaves), expected.detach())
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == (2 if dynamic else 6), "one with gradients and one without, for all sizes or for each"


def test_compiled_forward_mode_is_left_to_eager() -> None:
    """Without fullgraph it works; with it, an error rather than a tangent or a gradient that is missing."""
    case = make_case((1, 2, 5, 7, 6))
    tensors, along = tuple(case.values()), tuple(like(case, 60).values())

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(positional(attention), given, along)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager")(*tensors), run(*tensors))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="cannot trace forward mode"):
        torch.compile(run, backend="aot_eager", fullgraph=True)(*tensors)


# ------------------------------------------------------------------------------------------------ bad input

_Q = torch.ones(2, 3, 4, 5)
BAD: Bad = [
    (TypeError, "q must be a tensor, got list", {"q": [1.0]}),
    (TypeError, "q must be float32, float64, bfloat16 or float16, got torch.int64", {"q": _Q.long()}),
    (ValueError, r"q must have shape \(B, H, N, D\), H and D at least 1, got shape \(3, 4, 5\)", {"q": _Q[0]}),
    (ValueError, r"q must have shape .*, got shape \(2, 0, 4, 5\)", {"q": _Q[:, :0]}),
    (TypeError, "k must be a tensor, got NoneType", {"k": None}),
    (
        ValueError,
        r"k must have shape \(B, H, M, D\) = \(2, 3, M, 5\), M at least 1, got \(2, 3, 0, 5\)",
        {"k": _Q[:, :, :0]},
    ),
    (ValueError, r"k must have shape .*, got \(1, 3, 4, 5\)", {"k": _Q[:1]}),
    (ValueError, r"k must have shape .*, got \(2, 3, 4, 4\)", {"k": _Q[..., :4]}),
    (TypeError, "k must have the dtype of q, torch.float32, got torch.float64", {"k": _Q.double()}),
    (ValueError, "k must be on the device of q, cpu, got meta", {"k": _Q.to("meta")}),
    (ValueError, r"v must have the shape of k, \(2, 3, 4, 5\), got \(2, 3, 3, 5\)", {"v": _Q[:, :, :3]}),
    (TypeError, "v must have the dtype of k, torch.float32, got torch.float16", {"v": _Q.half()}),
    (TypeError, "residual must be a tensor, got float", {"residual": 1.0}),
    (ValueError, r"residual must have the shape of q, \(2, 3, 4, 5\), got \(2, 3, 4, 1\)", {"residual": _Q[..., :1]}),
    (TypeError, "scale must be a float, got Tensor", {"scale": torch.tensor(1.0)}),
    (ValueError, "scale must be above 0, got 0.0", {"scale": 0.0}),
    (ValueError, "scale must be finite, got nan", {"scale": float("nan")}),
    (TypeError, "output_scale must be a float, got bool", {"output_scale": True}),
    (ValueError, "output_scale must be finite, got inf", {"output_scale": float("inf")}),
]


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize(("error", "message", "wrong"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_bad_arguments(error: type[Exception], message: str, wrong: dict[str, Any], chosen: str) -> None:
    keywords = {"q": _Q, "k": _Q, "v": _Q, **wrong}
    with _backend.backend(chosen), pytest.raises(error, match=f"^attention: {message}$"):
        attention(**keywords)

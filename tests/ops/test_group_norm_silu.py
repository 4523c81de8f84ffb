"""group_norm_silu: every version against the reference, its derivatives, its traces, and what must not change a bit."""

import importlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from fastscore import _backend, _library, reference
from fastscore.ops import group_norm_silu
from fastscore.testing import assert_error_within_budget
from fastscore.testing.group_norm_silu import eager
from fastscore.testing.inputs import LAYOUTS, apart, make_input
from fastscore.testing.memory import peak_memory
from fastscore.testing.ops import DTYPES, run_on

RAW = {kind: getattr(torch.ops.fastscore, f"group_norm_silu_{kind}").default for kind in ("fwd", "bwd", "jvp")}
SPECIFICATION = importlib.import_module("fastscore.reference.group_norm_silu")
NAMES = ("x", "weight", "bias", "add", "scale", "shift")
SHAPES = (
    ((3, 12), 4),  # no pixels
    ((2, 8, 4, 4), 8),  # a group is a channel
    ((2, 6, 5, 3), 1),  # one group; fewer pixels than lanes
    ((2, 96, 7), 32),  # three channels a group, odd number of pixels
    ((2, 3, 33, 31), 3),  # rows longer than a vector, with a tail; channels-last rows too short to fill one
    ((2, 3, 16, 16), 1),  # channels-last rows that fold
    ((3, 64, 24, 24), 32),  # several channels-last blocks, an odd batch on two threads
    ((1, 2, 96, 96), 1),  # more elements in a group than are summed in one go
    ((2, 4, 3, 4, 5), 2),  # three spatial dimensions
)
OPTIONS = ("plain", "affine", "weight", "bias", "add", "scale", "shift", "all")

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    options: str = "all",
    mean: float = 0.0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Tensors of a call by their names; layout "channels_last" is taken for any rank."""
    n, c = shape[:2]
    x = make_input(shape, "contiguous" if layout == "channels_last" else layout, dtype=dtype, mean=mean, scale=scale)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    present = {"plain": "", "affine": "weight bias", "all": " ".join(NAMES)}.get(options, options).split()
    case = {"x": x}
    for seed, name in enumerate(NAMES[1:], 1):
        if name in present:
            case[name] = make_input((c,) if name in ("weight", "bias") else (n, c), dtype=dtype, seed=seed)
    if layout == "empty":
        case.update({name: case[name][:0] for name in ("add", "scale", "shift") if name in case})
    return case


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def like(case: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Tangents, or gradients of results, for the tensors of a case."""
    return {
        name: make_input(tuple(t.shape), dtype=t.dtype, seed=seed + k) if t.numel() else torch.zeros_like(t)
        for k, (name, t) in enumerate(case.items())
    }


def values(
    function: Callable[..., Tensor], case: dict[str, Tensor], num_groups: int, **keywords: Any
) -> dict[str, Tensor]:
    case = dict(case)
    return {"y": function(case.pop("x"), num_groups, **case, **keywords)}


def gradients(
    function: Callable[..., Tensor], case: dict[str, Tensor], num_groups: int, **keywords: Any
) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.items()}
    y = values(function, leaves, num_groups, **keywords)["y"]
    weight = like({"x": case["x"]}, 40)["x"].to(y.dtype)
    return dict(zip(case, torch.autograd.grad(y, list(leaves.values()), weight), strict=True))


def tangents(
    function: Callable[..., Tensor], case: dict[str, Tensor], num_groups: int, **keywords: Any
) -> dict[str, Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        return values(function, dict(zip(case, tensors, strict=True)), num_groups, **keywords)["y"]

    return {"y_t": torch.func.jvp(call, tuple(case.values()), tuple(like(case, 60).values()))[1]}


QUANTITIES = {"value": values, "gradient": gradients, "tangent": tangents}


def assert_parity(
    quantity: str,
    case: dict[str, Tensor],
    num_groups: int,
    actual: dict[str, Tensor] | None = None,
    **keywords: Any,
) -> None:
    """The op errs at most two (derivatives: three) times as much as `eager` does in the same dtype."""
    compute = QUANTITIES[quantity]
    actual = actual or compute(group_norm_silu, case, num_groups, **keywords)
    oracle = compute(reference.group_norm_silu, cast(case, torch.float64), num_groups, **keywords)
    plain = compute(eager, case, num_groups, **keywords) if case["x"].numel() else actual
    for name, result in actual.items():
        label = f"{quantity} {name} of {tuple(case['x'].shape)}"
        if result.dtype == torch.float64:
            # Oracle and op round alike, so the error of one is no measure for the other. Terms are of order one, of
            # either sign, each out of some dozen roundings: a sum of k of them is off by about sqrt(k) as much.
            size = max(float(oracle[name].abs().max()), 1.0) if result.numel() else 1.0
            size *= max(case["x"].numel() / max(result.numel(), 1), 1.0) ** 0.5
            torch.testing.assert_close(result, oracle[name], rtol=0, atol=32 * torch.finfo(torch.float64).eps * size)
        else:
            assert_error_within_budget(result, oracle[name], plain[name], label, factor=2 if quantity == "value" else 3)


# ------------------------------------------------------------------------------------------------ parity


@native
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "num_groups"), SHAPES, ids=str)
def test_parity_by_shape(shape: tuple[int, ...], num_groups: int, dtype: torch.dtype, quantity: str) -> None:
    with _backend.backend("cpu"):
        for layout in ("contiguous", "channels_last"):
            assert_parity(quantity, make_case(shape, dtype, layout), num_groups)


@native
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_by_layout(layout: str, dtype: torch.dtype, quantity: str) -> None:
    if (layout, quantity) == ("expanded", "tangent"):
        pytest.skip("torch makes no dual number of an expanded tensor; test_opcheck has the operator itself")
    assert_parity(quantity, make_case((4, 12, 6, 10), dtype, layout), 4)


@native
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_parity_by_option(options: str, silu: bool, quantity: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for dtype in (torch.float32, torch.bfloat16):
            assert_parity(quantity, make_case((2, 24, 5, 6), dtype, layout, options), 8, silu=silu, eps=1e-6)


@native
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("mean", "scale"), [(1e3, 1.0), (-1e3, 1e-2), (0.0, 1e-6), (0.0, 1e6)])
def test_parity_of_means_and_scales(mean: float, scale: float, quantity: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for options in ("affine", "all"):
            assert_parity(quantity, make_case((2, 16, 20, 20), torch.float32, layout, options, mean, scale), 4)


@native
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_one_element(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Such a group is normalized to 0, whatever x is: y does not depend on x and add, and nothing is divided by 0."""
    case = make_case(shape, dtype)
    y = values(group_norm_silu, case, 3)["y"]
    v = case["bias"].double() * (1 + case["scale"].double()) + case["shift"].double()
    torch.testing.assert_close(y, F.silu(v).reshape(shape).to(dtype))
    for quantity in ("gradient", "tangent"):
        actual = QUANTITIES[quantity](group_norm_silu, case, 3)
        expected = QUANTITIES[quantity](reference.group_norm_silu, cast(case, torch.float64), 3)
        for name, result in actual.items():
            # What cancels in them is of the size of 1 / sqrt(eps) and was rounded to the op dtype.
            unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
            atol = 4 * unit * 1e-5**-0.5
            torch.testing.assert_close(result, expected[name].to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=atol)


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constant_input(dtype: torch.dtype, layout: str) -> None:
    """Variance 0 exactly: a mean that is off by one unit in the last place would show a thousandfold."""
    x = make_case((2, 8, 24, 25), dtype, layout, "plain")["x"].fill_(1000.1)
    assert torch.equal(group_norm_silu(x, 2, silu=False), torch.zeros_like(x))
    _, mean, rstd = RAW["fwd"](x, *[None] * 5, 2, 1e-5, True)
    assert torch.equal(mean, x[:, :2, 0, 0].to(mean.dtype))
    assert torch.equal(rstd, torch.full_like(rstd, 1e-5**-0.5))


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_outlier(layout: str) -> None:
    """|x - mean| reaches sqrt(n) standard deviations, the bound by which the kernel leaves clamping out."""
    case = make_case((2, 8, 32, 32), torch.float32, layout, "affine", scale=1e-3)
    case["x"][:, :, 3, 4] = 1e4
    case["weight"] = torch.tensor([-4.0, -1.0, -0.9, -0.1, 0.1, 0.9, 1.0, 4.0])
    for num_groups in (1, 2, 8):
        assert_parity("value", case, num_groups)
        assert_parity("gradient", case, num_groups)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_alone(dtype: torch.dtype) -> None:
    """With weight 0 the result is silu(shift). Two units for the quotient and what goes into it, and u |v| because the
    exponent -v log2(e) is taken with log2(e) as rounded: half of what rounding v to float32 costs in exp(-v)."""
    v = torch.cat([torch.linspace(-80, 80, 40001), torch.tensor([-1e-30, -1e-4, 0.0, 1e-30, 85.0])]).to(dtype)
    v = v[None, : v.numel() // 4 * 4]
    y = group_norm_silu(torch.zeros_like(v), 1, torch.zeros_like(v[0]), shift=v)
    exact = v.double() / (1 + torch.exp(-v.double()))
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    relative = 4 * unit + unit * v.abs().double() + (torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # what rounds to a subnormal
    assert ((y.double() - exact).abs() <= relative * exact.abs() + smallest).all()


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu_of_extremes(dtype: torch.dtype) -> None:
    limit = float("inf") if dtype == torch.float64 else 1e4
    v = torch.tensor([[-limit, -1e4, -1e3, -800.0, 800.0, 1e3, 1e4, 2e4]], dtype=dtype)[:, 1:]
    v = torch.cat([v, v], 1)
    y = group_norm_silu(torch.zeros_like(v), 1, torch.zeros(v.shape[1], dtype=dtype), shift=v)
    assert torch.equal(y, v.clamp(min=0))
    assert torch.equal(y.signbit(), v.signbit()), "the limit from below is -0"
    slope = gradients(group_norm_silu, {"x": torch.zeros_like(v), "weight": torch.zeros_like(v[0]), "shift": v}, 1)[
        "shift"
    ]
    weight = like({"x": v}, 40)["x"]
    torch.testing.assert_close(slope, torch.where(v > 0, weight, 0.0), rtol=1e-6, atol=1e-30)


@native
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_group_with_nan_is_nan_and_no_other(layout: str, bad: float) -> None:
    case = make_case((2, 8, 5, 7), torch.float32, layout)
    good = values(group_norm_silu, case, 4)["y"]
    case["x"][1, 4, 2, 3] = bad
    y = values(group_norm_silu, case, 4)["y"]
    assert torch.isnan(y[1, 4:6]).all()
    good[1, 4:6] = y[1, 4:6] = 0
    assert torch.equal(y, good)


@native
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_may_be_float32(dtype: torch.dtype, quantity: str) -> None:
    """As under autocast: x in 16 bits, weights in 32; and x in 32 bits with an embedding in 16."""
    low = make_case((2, 12, 6, 6), dtype)
    exact = {name: tensor if name == "x" else tensor.float() for name, tensor in low.items()}
    compute = QUANTITIES[quantity]
    for case in (exact, {**cast(low, torch.float32), "add": low["add"]}):
        actual = compute(group_norm_silu, case, 4)
        assert {name: t.dtype for name, t in actual.items()} == (
            {name: t.dtype for name, t in case.items()}
            if quantity == "gradient"
            else dict.fromkeys(actual, case["x"].dtype)
        )
        oracle = compute(reference.group_norm_silu, cast(case, torch.float64), 4)
        plain = compute(reference.group_norm_silu, case, 4)
        for name, result in actual.items():
            assert_error_within_budget(result, oracle[name], plain[name], name, factor=2 if quantity == "value" else 3)


def test_autocast_trains() -> None:
    case = make_case((2, 8, 4, 4), options="affine")
    leaves = [case[name].requires_grad_() for name in ("weight", "bias")]
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = group_norm_silu(convolution(case["x"]), 4, *leaves)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 and leaf.grad.abs().max() > 0 for leaf in leaves)
    assert convolution.weight.grad.abs().max() > 0


def test_reference_is_eager_pytorch() -> None:
    for layout in ("contiguous", "channels_last"):
        case = make_case((2, 12, 5, 4), torch.float64, layout)
        for silu in (True, False):
            actual = values(reference.group_norm_silu, case, 3, silu=silu, eps=1e-3)["y"]
            expected = values(eager, case, 3, silu=silu, eps=1e-3)["y"]
            torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("silu", [True, False])
def test_raw_references_are_derivatives_of_the_reference(silu: bool, rows: bool) -> None:
    """The three raw operators in plain PyTorch, against torch's own derivative; weight and bias (C,) and (N, C)."""
    case = make_case((3, 8, 5, 2), torch.float64)
    if rows:
        case["weight"], case["bias"] = (make_input((3, 8), dtype=torch.float64, seed=k) for k in (7, 8))

    def call(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y = group(x + add[..., None, None])
        weight, bias = (p[..., None, None] for p in (weight, bias))
        y = (y * weight + bias) * (1 + scale[..., None, None]) + shift[..., None, None]
        return F.silu(y) if silu else y

    def group(z: Tensor) -> Tensor:
        return torch.group_norm(z, 4, eps=1e-5)

    tensors = [case[name] for name in NAMES]
    y, mean, rstd = SPECIFICATION.group_norm_silu_fwd(*tensors, 4, 1e-5, silu)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(y, call(*tensors), **close)
    z = (case["x"] + case["add"][..., None, None]).reshape(3, 4, -1)
    torch.testing.assert_close(mean, z.mean(-1), **close)
    torch.testing.assert_close(rstd, (z.var(-1, correction=0) + 1e-5).rsqrt(), **close)
    grad_y = make_input((3, 8, 5, 2), dtype=torch.float64, seed=9)
    expected = torch.func.vjp(call, *tensors)[1](grad_y)
    torch.testing.assert_close(
        SPECIFICATION.group_norm_silu_bwd(grad_y, *tensors, mean, rstd, 4, silu), expected, **close
    )
    along = [make_input(tuple(t.shape), dtype=torch.float64, seed=20 + k) for k, t in enumerate(tensors)]
    expected = torch.func.jvp(call, tuple(tensors), tuple(along))[1]
    actual = SPECIFICATION.group_norm_silu_jvp(*tensors, mean, rstd, *along, 4, silu)
    torch.testing.assert_close(actual, expected, **close)
    if _library.NATIVE:
        torch.testing.assert_close(RAW["bwd"](grad_y, *tensors, mean, rstd, 4, silu)[1:3],
                                   torch.func.vjp(call, *tensors)[1](grad_y)[1:3], **close)  # fmt: skip
        torch.testing.assert_close(RAW["jvp"](*tensors, mean, rstd, *along, 4, silu), expected, **close)


# ------------------------------------------------------------------------------------------------ layouts and bits


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_results(layout: str) -> None:
    case = make_case((4, 8, 6, 5), layout=layout)
    expected = case["x"] if layout in ("contiguous", "channels_last") else case["x"].contiguous()
    y = values(group_norm_silu, case, 4)["y"]
    assert (y.shape, y.stride()) == (case["x"].shape, expected.stride())
    assert gradients(group_norm_silu, case, 4)["x"].shape == case["x"].shape
    _, mean, rstd = RAW["fwd"](*(case[name] for name in NAMES), 4, 1e-5, True)
    assert RAW["bwd"](y, *(case[name] for name in NAMES), mean, rstd, 4, True)[0].stride() == expected.stride()


@native
@pytest.mark.parametrize(
    ("layout", "copies"), [("contiguous", 0), ("channels_last", 0), ("expanded", 0), ("permuted", 1)]
)
def test_layouts_are_not_converted(layout: str, copies: int) -> None:
    case = make_case((4, 8, 6, 5), layout=layout)
    with torch.autograd.profiler.profile() as profile:
        values(group_norm_silu, case, 4)
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::copy_") == copies


@native
def test_samples_may_lie_apart() -> None:
    """Half of the channels of a wider tensor, as `chunk` gives them, are taken where they are."""
    wide = make_input((3, 16, 6, 5))
    for part in wide.chunk(2, dim=1):
        assert torch.equal(group_norm_silu(part, 4), group_norm_silu(part.clone(), 4))
    last = wide.contiguous(memory_format=torch.channels_last)[::2]
    assert group_norm_silu(last, 4).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(group_norm_silu(last, 4), group_norm_silu(last.clone(), 4))


@native
def test_parameters_in_any_layout() -> None:
    case = make_case((4, 8, 6, 5))
    want = values(group_norm_silu, case, 4)["y"]
    strided = {
        name: make_input(tuple(t.shape), "sliced", seed=k) for k, (name, t) in enumerate(case.items()) if name != "x"
    }
    assert torch.equal(values(group_norm_silu, {"x": case["x"], **strided}, 4)["y"], want)
    row = {name: case[name][:1].expand(4, -1) for name in ("add", "scale", "shift")}
    copied = {name: t.clone() for name, t in row.items()}
    assert torch.equal(group_norm_silu(case["x"], 4, **row), group_norm_silu(case["x"], 4, **copied))


@native
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 32, 48, 48), (3, 32, 40, 40), (8, 32, 24, 24)], ids=str)
def test_bits_do_not_depend_on_threads(shape: tuple[int, ...], layout: str, quantity: str, threads) -> None:
    case = make_case(shape, torch.float32, layout)
    with threads(1):
        want = QUANTITIES[quantity](group_norm_silu, case, 8)
    for count in (2, 3):
        with threads(count):
            actual = QUANTITIES[quantity](group_norm_silu, case, 8)
        assert all(torch.equal(actual[name], want[name]) for name in want), count


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bits_do_not_depend_on_batch(layout: str) -> None:
    case = make_case((6, 32, 20, 20), torch.float32, layout)
    want = values(group_norm_silu, case, 8)["y"]
    for i in range(6):
        alone = {name: t if name in ("weight", "bias") else t[i : i + 1] for name, t in case.items()}
        assert torch.equal(values(group_norm_silu, alone, 8)["y"][0], want[i])


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    case = make_case((4, 12, 6, 10), layout=layout)
    isa = _library.build_info()["isa"]
    for quantity, kinds in {"value": ["fwd"], "gradient": ["fwd", "bwd"], "tangent": ["fwd", "jvp"]}.items():
        if (layout, quantity) == ("expanded", "tangent"):
            continue  # see test_parity_by_layout
        _library.NATIVE.reset_launches()
        QUANTITIES[quantity](group_norm_silu, case, 4)
        expected = {} if layout == "empty" else {f"group_norm_silu_{kind}.{isa}": 1 for kind in kinds}
        assert _library.NATIVE.launches() == expected
        with _backend.backend("reference"):
            forced = QUANTITIES[quantity](group_norm_silu, case, 4)
        assert _library.NATIVE.launches() == expected, "the reference was asked for"
        plain = QUANTITIES[quantity](reference.group_norm_silu, case, 4)
        assert all(torch.equal(forced[name], plain[name]) for name in plain)


@native
def test_raw_launchers() -> None:
    tensors = list(make_case((2, 8, 5, 4)).values())
    fwd = RAW["fwd"](*tensors, 4, 1e-5, True)
    assert all(map(torch.equal, _library.NATIVE.group_norm_silu_fwd_cpu(*tensors, 4, 1e-5, True), fwd))
    bwd = RAW["bwd"](fwd[0], *tensors, *fwd[1:], 4, True)
    assert all(map(torch.equal, _library.NATIVE.group_norm_silu_bwd_cpu(fwd[0], *tensors, *fwd[1:], 4, True), bwd))
    jvp = RAW["jvp"](*tensors, *fwd[1:], *tensors, 4, True)
    assert torch.equal(_library.NATIVE.group_norm_silu_jvp_cpu(*tensors, *fwd[1:], *tensors, 4, True), jvp)


PROBE = """
results = []
for tensors, grad_y, along, groups in cases:
    y, mean, rstd = torch.ops.fastscore.group_norm_silu_fwd(*tensors, groups, 1e-5, True)
    grads = torch.ops.fastscore.group_norm_silu_bwd(grad_y, *tensors, mean, rstd, groups, True)
    y_t = torch.ops.fastscore.group_norm_silu_jvp(*tensors, mean, rstd, *along, groups, True)
    results.append((y, grads, y_t))
"""


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        (make_case(shape, dtype, layout), groups)
        for shape, groups in (((2, 12, 9, 7), 3), ((2, 3, 16, 16), 1))
        for dtype in DTYPES
        for layout in ("contiguous", "channels_last")
    ]
    saved = [
        (list(case.values()), like({"x": case["x"]}, 40)["x"], list(like(case, 60).values()), groups)
        for case, groups in cases
    ]
    results, launches = run_on(isa, PROBE, saved, tmp_path)
    assert launches == {f"group_norm_silu_{kind}.{isa}": len(cases) for kind in RAW}
    for (case, groups), (y, grads, y_t) in zip(cases, results, strict=True):
        assert_parity("value", case, groups, {"y": y})
        assert_parity("gradient", case, groups, dict(zip(case, grads, strict=True)))
        assert_parity("tangent", case, groups, {"y_t": y_t})


# ------------------------------------------------------------------------------------------------ derivatives


def positional(function: Callable[..., Tensor], silu: bool = True) -> Callable[..., Tensor]:
    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return function(x, 3, **dict(zip(NAMES[1:], parameters, strict=False)), silu=silu)

    return call


@pytest.mark.parametrize(
    ("layout", "options", "chosen"),
    [
        ("contiguous", "plain", "auto"),
        ("contiguous", "all", "auto"),
        ("channels_last", "affine", "auto"),
        ("channels_last", "all", "auto"),
        ("contiguous", "all", "reference"),
    ],
)
def test_gradcheck(layout: str, options: str, chosen: str) -> None:
    case = make_case((2, 6, 2, 1), torch.float64, layout, options)
    inputs = [tensor.requires_grad_() for tensor in case.values()]
    with _backend.backend(chosen):
        assert torch.autograd.gradcheck(
            positional(group_norm_silu),
            inputs,
            check_forward_ad=True,
            check_batched_grad=chosen == "auto",
            check_batched_forward_grad=chosen == "auto",
        )
        assert torch.autograd.gradgradcheck(
            positional(group_norm_silu), inputs, check_fwd_over_rev=True, fast_mode=True
        )


@pytest.mark.parametrize("transform", ["jacrev", "jacfwd", "hessian", "rev over rev", "rev over fwd"])
def test_torch_func(transform: str) -> None:
    case = make_case((2, 6, 3, 2), torch.float64)

    def derivative(function: Callable[..., Tensor]) -> Callable[..., Any]:
        call = positional(function)
        func = torch.func
        if transform == "rev over rev":
            return func.jacrev(func.grad(lambda *t: call(*t).square().sum()))
        if transform == "rev over fwd":
            along = make_input((2, 6, 3, 2), dtype=torch.float64, seed=8)
            tangent = [torch.zeros_like(t) for t in list(case.values())[1:]]
            return func.jacrev(lambda *t: func.jvp(call, t, (along, *tangent))[1].square().sum())
        if transform == "hessian":
            return func.hessian(lambda *t: call(*t).square().sum())
        return getattr(func, transform)(call, argnums=tuple(range(6)))

    actual, expected = (derivative(f)(*case.values()) for f in (group_norm_silu, reference.group_norm_silu))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mapped", [*NAMES, "all"])
@pytest.mark.parametrize("quantity", ["value", "vjp", "jvp", "hvp"])
def test_vmap(quantity: str, mapped: str) -> None:
    """Every tensor mapped alone, with the others shared, and all together, in each kind of derivative."""
    case = make_case((2, 6, 3, 2), torch.float64)
    tensors = [torch.stack([t, 2 * t, t - 1], -1) if mapped in (name, "all") else t for name, t in case.items()]
    dims = tuple(-1 if mapped in (name, "all") else None for name in case)
    grad_y = make_input((2, 6, 3, 2), dtype=torch.float64, seed=8)
    along = tuple(like(case, 60).values())

    def compute(function: Callable[..., Tensor]) -> Any:
        call = positional(function)

        def one(*t: Tensor) -> Any:
            if quantity == "vjp":
                return torch.func.vjp(call, *t)[1](grad_y)
            if quantity == "jvp":
                return torch.func.jvp(call, t, along)
            if quantity == "hvp":
                return torch.func.jvp(lambda *s: torch.func.vjp(call, *s)[1](grad_y), t, along)
            return call(*t)

        return torch.func.vmap(one, in_dims=dims)(*tensors)

    torch.testing.assert_close(compute(group_norm_silu), compute(reference.group_norm_silu), rtol=1e-11, atol=1e-12)


def test_probes_over_one_point() -> None:
    """vmap(vjp) and vmap(jvp) with only the probe mapped, as trace estimators do."""
    case = make_case((2, 6, 3, 2), torch.float64)
    x, *parameters = case.values()
    probes = make_input((5, 2, 6, 3, 2), dtype=torch.float64, seed=9)

    def products(function: Callable[..., Tensor]) -> tuple[Any, Any]:
        def f(x: Tensor) -> Tensor:
            return positional(function)(x, *parameters)

        forward = torch.func.vmap(lambda v: torch.func.jvp(f, (x,), (v,))[1])(probes)
        return forward, torch.func.vmap(torch.func.vjp(f, x)[1])(probes)

    torch.testing.assert_close(products(group_norm_silu), products(reference.group_norm_silu), rtol=1e-11, atol=1e-12)


def test_dual_numbers_outside_torch_func() -> None:
    case = make_case((2, 6, 3, 2), torch.float64)
    along = like(case, 60)
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(t, along[name]) for name, t in case.items()}
        tangent = forward_ad.unpack_dual(values(group_norm_silu, duals, 3)["y"]).tangent
    expected = tangents(reference.group_norm_silu, case, 3)["y_t"]
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)


@native
def test_only_what_needs_a_gradient_gets_one() -> None:
    case = make_case((2, 6, 3, 2))
    case["weight"].requires_grad_()
    _library.NATIVE.reset_launches()
    values(group_norm_silu, case, 3)["y"].sum().backward()
    assert case["weight"].grad is not None
    assert all(case[name].grad is None for name in NAMES if name != "weight")
    with torch.no_grad():
        assert values(group_norm_silu, case, 3)["y"].grad_fn is None


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str, options: str) -> None:
    case = make_case((3, 4, 5, 2), torch.float32, layout, options)
    tensors = [case.get(name) for name in NAMES]
    y, mean, rstd = RAW["fwd"](*tensors, 2, 1e-5, True)
    torch.library.opcheck(RAW["fwd"], (*tensors, 2, 1e-5, True))
    torch.library.opcheck(RAW["bwd"], (y, *tensors, mean, rstd, 2, True))
    torch.library.opcheck(RAW["jvp"], (*tensors, mean, rstd, *tensors, 2, True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes(device: str, layout: str) -> None:
    case = make_case((3, 4, 5, 2), torch.bfloat16, layout)
    real = values(group_norm_silu, case, 2)["y"]
    leaf_gradients = gradients(group_norm_silu, case, 2)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(t) for name, t in case.items()}
        if device == "cuda":
            fake = {
                name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for name, t in fake.items()
            }
        tensors = [fake[name] for name in NAMES]
        out, mean, rstd = RAW["fwd"](*tensors, 2, 1e-5, True)
        assert mean.device.type == rstd.device.type == device
        assert RAW["jvp"](*tensors, mean, rstd, *tensors, 2, True).stride() == real.stride()
        for (name, actual), got in zip(
            leaf_gradients.items(), RAW["bwd"](out, *tensors, mean, rstd, 2, True), strict=True
        ):
            assert (got.shape, got.dtype, got.device.type) == (actual.shape, actual.dtype, device), name
        out = values(group_norm_silu, fake, 2)["y"]
        assert (out.shape, out.dtype, out.stride()) == (real.shape, real.dtype, real.stride())
        assert out.device.type == device
        if device == "cuda":
            return  # the engine asks for the context of a GPU, fake or not
        leaves = {name: t.requires_grad_() for name, t in fake.items()}
        out = values(group_norm_silu, leaves, 2)["y"]
        for (name, actual), got in zip(
            leaf_gradients.items(), torch.autograd.grad(out.sum(), list(leaves.values())), strict=True
        ):
            assert (got.shape, got.dtype, got.device.type) == (actual.shape, actual.dtype, device), name


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile(layout: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    counters.clear()

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return positional(group_norm_silu)(x * 2, *parameters) + 1

    for size in (4, 5, 7):
        case = make_case((size, 6, size, 3), torch.float32, layout)
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in case.values()]
        same = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in case.values()]
        actual, expected = call(*leaves), positional(group_norm_silu)(same[0] * 2, *same[1:]) + 1
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()
        for a, e in zip(
            torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), same), strict=True
        ):
            assert torch.equal(a, e)
        with torch.no_grad():
            assert torch.equal(call(*leaves), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == (2 if dynamic else 6), "one with gradients and one without, for all sizes or for each"


# ------------------------------------------------------------------------------------------------ in memory given


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_out(dtype: torch.dtype, layout: str, chosen: str) -> None:
    """What the op gives without `out`, to the bit; also where x is overwritten, and with samples that lie apart."""
    for shape, groups in SHAPES:
        case = make_case(shape, dtype, layout)
        with _backend.backend(chosen):
            settings = (*(case[name] for name in NAMES), groups, 1e-5, True)
            want = (SPECIFICATION.group_norm_silu_fwd if chosen == "reference" else RAW["fwd"])(*settings)[0]
            out = torch.empty_like(case["x"])
            assert group_norm_silu(**case, num_groups=groups, out=out) is out
            assert torch.equal(out, want)
            spaced = {**case, "x": apart(case["x"], 5)}
            assert torch.equal(group_norm_silu(**spaced, num_groups=groups, out=out.zero_()), want)
            x = case["x"]
            assert group_norm_silu(**case, num_groups=groups, out=x) is x
            assert torch.equal(x, want)


@native
def test_out_allocates_no_result_and_runs_the_kernel() -> None:
    x = make_input((2, 64, 32, 32))
    isa = _library.build_info()["isa"]

    def call() -> None:
        group_norm_silu(x, 32, out=x)

    call()
    _library.NATIVE.reset_launches()
    call()
    assert _library.NATIVE.launches() == {f"group_norm_silu_fwd.{isa}": 1}
    assert peak_memory(call, x.device) < x.numel()  # a quarter of x: numbers per channel
    assert group_norm_silu(x[:0], 32, out=x[:0]).shape == (0, 64, 32, 32)


def test_out_is_refused_where_derivatives_are_recorded() -> None:
    x = torch.ones(2, 6, 3)
    message = "group_norm_silu: out must be None where derivatives are recorded"
    for leaf in ("x", "weight", "shift", "out"):
        case = {**make_case((2, 6, 3)), "out": torch.ones(2, 6, 3)}
        case[leaf].requires_grad_()
        with pytest.raises(ValueError, match=message):
            group_norm_silu(**case, num_groups=3)
        with torch.no_grad():
            group_norm_silu(**case, num_groups=3)
    with pytest.raises(ValueError, match=message):
        torch.func.jvp(lambda x: group_norm_silu(x, 3, out=torch.empty_like(x)), (x,), (x,))


@native
def test_out_that_does_not_fit() -> None:
    x = torch.ones(2, 6, 4, 4)
    for out, error, message in (
        ([1.0], TypeError, "out must be a tensor, got list"),
        (x.double(), TypeError, "out must have the dtype of x, torch.float32, got torch.float64"),
        (x[:1], ValueError, r"out must have the shape of x, \(2, 6, 4, 4\), got \(1, 6, 4, 4\)"),
        (x.to("meta"), ValueError, "out must be on the device of x, cpu, got meta"),
        (x.contiguous(memory_format=torch.channels_last), ValueError, "out must be dense in the layout of x, contig"),
        (torch.ones(2, 7, 4, 4)[:, :6], ValueError, "out must be dense in the layout of x, contiguous"),
        (torch.ones(1, 6, 4, 4).expand(2, -1, -1, -1), ValueError, "out must be dense in the layout of x, contig"),
    ):
        with pytest.raises(error, match=f"group_norm_silu: {message}"):
            group_norm_silu(x, 3, out=out)
    with pytest.raises(ValueError, match="out must be None for x on a device other than the CPU, got a tensor on meta"):
        group_norm_silu(x.to("meta"), 3, out=x.to("meta"))
    memory, weight = torch.ones(2 * 96 + 8), torch.ones(192)
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        group_norm_silu(memory[:192].view(2, 6, 4, 4), 3, out=memory[8:].view(2, 6, 4, 4))
    with pytest.raises(RuntimeError, match="refer to a single memory location"):
        group_norm_silu(x, 3, weight[:6], out=weight.view(2, 6, 4, 4))


# ------------------------------------------------------------------------------------------------ bad input


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": "x"}, TypeError, "x must be a tensor, got str"),
    (
        {"x": torch.ones(2, 6, 3, dtype=torch.int64)},
        TypeError,
        "x must be float32, float64, bfloat16 or float16, got torch.int64",
    ),
    ({"x": torch.ones(6)}, ValueError, r"x must have shape \(N, C, \.\.\.\), got shape \(6,\)"),
    ({"num_groups": 4}, ValueError, "num_groups must be at least 1 and divide the channels of x, 6, got 4"),
    ({"num_groups": 0}, ValueError, "num_groups must be at least 1 and divide the channels of x, 6, got 0"),
    ({"num_groups": -2}, ValueError, "num_groups must be at least 1 and divide the channels of x, 6, got -2"),
    ({"num_groups": 2.0}, TypeError, "num_groups must be an int, got float"),
    ({"num_groups": True}, TypeError, "num_groups must be an int, got bool"),
    ({"eps": -1e-5}, ValueError, "eps must be finite and at least 0, got -1e-05"),
    ({"eps": float("nan")}, ValueError, "eps must be finite and at least 0, got nan"),
    ({"eps": "1e-5"}, TypeError, "eps must be a float, got str"),
    ({"silu": 1}, TypeError, "silu must be a bool, got int"),
    *(
        case
        for name, shape, wrong in (
            ("weight", r"\(C,\) = \(6,\)", (5,)),
            ("bias", r"\(C,\) = \(6,\)", (2, 6)),
            ("add", r"\(N, C\) = \(2, 6\)", (6,)),
            ("scale", r"\(N, C\) = \(2, 6\)", (1, 6)),
            ("shift", r"\(N, C\) = \(2, 6\)", (2, 6, 1)),
        )
        for case in (
            ({name: 1.0}, TypeError, f"{name} must be a tensor, got float"),
            ({name: torch.ones(wrong)}, ValueError, f"{name} must have shape {shape}, got {re.escape(str(wrong))}"),
            (
                {name: torch.ones((2, 6) if "N" in shape else (6,), dtype=torch.float64)},
                TypeError,
                f"{name} must be float32, bfloat16 or float16 for torch.float32 x, got torch.float64",
            ),
            (
                {"x": torch.ones(2, 6, 3, dtype=torch.float64), name: torch.ones((2, 6) if "N" in shape else (6,))},
                TypeError,
                f"{name} must be float64 for torch.float64 x, got torch.float32",
            ),
            (
                {name: torch.ones((2, 6) if "N" in shape else (6,), device="meta")},
                ValueError,
                f"{name} must be on the device of x, cpu, got meta",
            ),
        )
    ),
]


@pytest.mark.parametrize(("wrong", "error", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_bad_arguments(wrong: dict[str, Any], error: type[Exception], message: str, chosen: str) -> None:
    keywords = {"x": torch.ones(2, 6, 3), "num_groups": 3, **wrong}
    with _backend.backend(chosen), pytest.raises(error, match=f"^group_norm_silu: {message}$"):
        group_norm_silu(**keywords)


@native
def test_raw_op_refuses_what_would_crash() -> None:
    x, other = torch.ones(2, 6, 3), torch.ones(2, 6, 4)
    y, mean, rstd = RAW["fwd"](x, *[None] * 5, 3, 1e-5, True)
    none = [None] * 5
    refused = [
        (lambda: RAW["fwd"](torch.ones(6), *none, 3, 1e-5, True), "x must have shape"),
        (lambda: RAW["fwd"](x, *none, 4, 1e-5, True), "num_groups must divide"),
        (lambda: RAW["fwd"](x, torch.ones(5), *none[1:], 3, 1e-5, True), "weight must have shape"),
        (lambda: RAW["bwd"](other, x, *none, mean, rstd, 3, True), "grad_y must be like x"),
        (lambda: RAW["bwd"](y, x, *none, mean[:1], rstd, 3, True), "mean must be what the forward op gave"),
        (lambda: RAW["bwd"](y, x, *none, mean, rstd.double(), 3, True), "rstd must be what the forward op gave"),
        (lambda: RAW["jvp"](x, *none, mean, rstd, other, *none, 3, True), "the tangent of x must be like x"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=f"group_norm_silu: {message}"):
            call()
    with pytest.raises(TypeError, match="group_norm_silu: x must be float32"):
        RAW["fwd"](torch.ones(2, 6, dtype=torch.int32), *none, 3, 1e-5, True)

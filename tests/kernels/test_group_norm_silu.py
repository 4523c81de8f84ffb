"""group_norm_silu in Triton against the reference: in one pass and split, layouts, dtypes, derivatives."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscore import reference
from fastscore.kernels import _group_norm_silu as shared
from fastscore.kernels._launch import LAUNCHES
from fastscore.ops import group_norm_silu
from fastscore.testing import assert_error_within_budget
from fastscore.testing.group_norm_silu import eager
from fastscore.testing.inputs import make_input
from fastscore.testing.tolerances import ulp_distance

RAW = {kind: getattr(torch.ops.fastscore_triton, f"group_norm_silu_{kind}").default for kind in ("fwd", "bwd", "jvp")}
SPECIFICATION = importlib.import_module("fastscore.reference.group_norm_silu")
SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float64, torch.float16)]
LAYOUTS = ("contiguous", "channels_last")
NAMES = ("x", "weight", "bias", "add", "scale", "shift")
SHAPES = (
    ((10, 12), 4),  # no pixels
    ((4, 64, 1, 1), 8),  # one pixel
    ((2, 8, 4, 4), 8),  # a group is a channel
    ((2, 32, 7, 3), 8),  # a number of pixels that is no multiple of anything
    ((1, 6, 5, 3), 1),  # one group
    ((2, 36, 6, 2), 12),  # channels of a group and of a sample that are no powers of two
    ((1, 3, 17, 13), 3),  # channels-last rows shorter than a vector
    ((2, 4, 3, 4, 5), 2),  # three spatial dimensions
)
SPLIT = {"value": "fwd_partials", "gradient": "bwd_finish", "tangent": "jvp_partials"}


@pytest.fixture(params=["one_pass", "split"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As small tensors are computed, or in many tiles as large ones are, a few steps to a program."""
    if request.param == "split":
        split(monkeypatch)
    yield request.param
    shared.plan.cache_clear()


def split(monkeypatch: pytest.MonkeyPatch, chunks: int = 4) -> None:
    """Tiles of 16 * 8 elements (a few of them for each thread), and `chunks` programs to a group."""
    monkeypatch.setattr(shared, "ONE_PASS_THREADS", 0)
    monkeypatch.setattr(shared, "SPLIT_THREADS", 8)
    monkeypatch.setattr(shared, "CHUNKS", chunks)
    shared.plan.cache_clear()


def make_case(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    device: torch.device,
    present: tuple[str, ...] = NAMES,
    mean: float = 0.0,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Tensors of a call by their names; layout "channels_last" is taken for any rank."""
    n, c = shape[:2]
    kind = "contiguous" if layout == "channels_last" else layout
    x = make_input(shape, kind, dtype=dtype, device=device, mean=mean, scale=scale)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    case = {"x": x}
    for seed, name in enumerate(NAMES[1:], 1):
        if name in present:
            size = (c,) if name in ("weight", "bias") else (n, c)
            case[name] = make_input(size, dtype=dtype, device=device, seed=seed)
    return case


def like(case: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Tangents, or gradients of results, for the tensors of a case."""
    return {
        name: make_input(tuple(t.shape), dtype=t.dtype, device=t.device, seed=seed + k)
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
    weight = like({"x": case["x"]}, 40)["x"]
    return dict(zip(case, torch.autograd.grad(y, list(leaves.values()), weight), strict=True))


def tangents(
    function: Callable[..., Tensor], case: dict[str, Tensor], num_groups: int, **keywords: Any
) -> dict[str, Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        return values(function, dict(zip(case, tensors, strict=True)), num_groups, **keywords)["y"]

    return {"y_t": torch.func.jvp(call, tuple(case.values()), tuple(like(case, 60).values()))[1]}


QUANTITIES = {"value": values, "gradient": gradients, "tangent": tangents}


def assert_parity(quantity: str, case: dict[str, Tensor], num_groups: int, **keywords: Any) -> None:
    """The op errs at most two (derivatives: three) times as much as `eager` does in the same dtype."""
    compute = QUANTITIES[quantity]
    actual = compute(group_norm_silu, case, num_groups, **keywords)
    in64 = {name: tensor.double() for name, tensor in case.items()}
    oracle = compute(reference.group_norm_silu, in64, num_groups, **keywords)
    plain = compute(eager, case, num_groups, **keywords)
    for name, result in actual.items():
        label = f"{quantity} {name} of {tuple(case['x'].shape)}"
        if result.dtype == torch.float64:
            # Oracle and op round alike, so the error of one is no measure for the other. Terms are of order one, of
            # either sign, each out of some dozen roundings: a sum of k of them is off by about sqrt(k) as much.
            size = max(float(oracle[name].abs().max()), 1.0) * (case["x"].numel() / result.numel()) ** 0.5
            torch.testing.assert_close(result, oracle[name], rtol=0, atol=32 * torch.finfo(torch.float64).eps * size)
        else:
            assert_error_within_budget(result, oracle[name], plain[name], label, factor=2 if quantity == "value" else 3)


def raw(case: dict[str, Tensor]) -> list[Tensor | None]:
    return [case.get(name) for name in NAMES]


# ------------------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("shape", "num_groups"), SHAPES, ids=str)
def test_parity_by_shape(
    shape: tuple[int, ...], num_groups: int, quantity: str, path: str, device: torch.device
) -> None:
    for layout in LAYOUTS:
        assert_parity(quantity, make_case(shape, torch.float32, layout, device), num_groups)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, *SLOW], ids=str)
def test_parity_by_dtype(dtype: torch.dtype, quantity: str, path: str, device: torch.device) -> None:
    for layout in LAYOUTS:
        assert_parity(quantity, make_case((2, 8, 5, 6), dtype, layout, device), 2)
    one_pass = LAUNCHES[f"group_norm_silu_{SPLIT[quantity]}_kernel"] == 0
    assert one_pass == (path == "one_pass")


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(
    "present", [(), ("weight", "bias"), ("weight",), ("bias", "scale"), ("add",), ("add", "shift")]
)
def test_parity_by_option(present: tuple[str, ...], quantity: str, path: str, device: torch.device) -> None:
    for layout, silu in zip(LAYOUTS, (True, False), strict=True):
        case = make_case((2, 12, 4, 5), torch.float32, layout, device, present)
        assert_parity(quantity, case, 3, silu=silu, eps=1e-6)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_24_groups_of_96_channels(quantity: str, device: torch.device) -> None:
    for layout, dtype in zip(LAYOUTS, (torch.float32, torch.bfloat16), strict=True):
        assert_parity(quantity, make_case((1, 24 * 96, 2, 1), dtype, layout, device), 24)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(("mean", "scale"), [(1e3, 1.0), (-1e3, 1e-2), (0.0, 1e-6), (0.0, 1e6)])
def test_parity_of_means_and_scales(mean: float, scale: float, quantity: str, path: str, device: torch.device) -> None:
    for layout, present in zip(LAYOUTS, (("weight", "bias"), NAMES), strict=True):
        case = make_case((2, 8, 9, 8), torch.float32, layout, device, present, mean, scale)
        assert_parity(quantity, case, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *SLOW], ids=str)
def test_constant_input(dtype: torch.dtype, layout: str, path: str, device: torch.device) -> None:
    """Variance 0 exactly: a mean that is off by one unit in the last place would show a thousandfold."""
    x = make_case((2, 6, 9, 7), dtype, layout, device, ())["x"].fill_(1000.1)
    y, mean, rstd = RAW["fwd"](x, *[None] * 5, 2, 1e-5, False)
    assert torch.equal(y, torch.zeros_like(x))
    assert torch.equal(mean, x[:, :2, 0, 0].to(mean.dtype))
    # the root and the quotient are rounded
    assert ulp_distance(rstd, torch.full_like(rstd, 1e-5**-0.5)).max() <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_chunks_far_apart(layout: str, path: str, device: torch.device) -> None:
    """The parts of a group have nothing in common: means of 1e3 and of 0, deviations of 1 and of 1e-3."""
    x = make_input((1, 4, 16, 9), dtype=torch.float32, device=device)
    x[:, :, 5:] *= 1e-3
    x[:, :, :5] += 1e3
    x[:, 1] -= 1e3
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if layout == "channels_last" else x
    y, mean, rstd = RAW["fwd"](x, *[None] * 5, 2, 1e-5, True)
    exact = SPECIFICATION.group_norm_silu_fwd(x.double(), *[None] * 5, 2, 1e-5, True)
    plain = SPECIFICATION.group_norm_silu_fwd(x, *[None] * 5, 2, 1e-5, True)
    for name, got, want, low in zip(("y", "mean", "rstd"), (y, mean, rstd), exact, plain, strict=True):
        assert_error_within_budget(got, want, low, name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_with_nan_is_nan_and_no_other(layout: str, bad: float, path: str, device: torch.device) -> None:
    case = make_case((2, 12, 5, 7), torch.float32, layout, device)
    good = values(group_norm_silu, case, 4)["y"]
    case["x"][1, 4, 2, 3] = bad
    y = values(group_norm_silu, case, 4)["y"]
    assert torch.isnan(y[1, 3:6]).all()
    good[1, 3:6] = y[1, 3:6] = 0
    assert torch.equal(y, good)


# ------------------------------------------------------------------------------------------------ layouts and operands


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("layout", ["permuted", "sliced", "expanded"])
def test_parity_by_layout(layout: str, quantity: str, path: str, device: torch.device) -> None:
    if (layout, quantity) == ("expanded", "tangent"):
        layout = "sliced"  # torch makes no dual number of an expanded tensor
    assert_parity(quantity, make_case((2, 12, 4, 6), torch.float32, layout, device), 4)


def test_samples_and_channels_that_are_sliced_are_not_copied(path: str, device: torch.device) -> None:
    """Every other sample, and a part of the channels: the samples are dense all the same."""
    for layout in LAYOUTS:
        wide = make_case((4, 12, 5, 4), torch.float32, layout, device, ())["x"]
        x = wide[::2] if layout == "channels_last" else wide[::2, 4:]
        call = shared.Call(x, [], 4, 1)
        assert call.operands[0].data_ptr() == x.data_ptr()
        want = RAW["fwd"](x.clone(), *[None] * 5, 4, 1e-5, True)
        for got, expected in zip(RAW["fwd"](x, *[None] * 5, 4, 1e-5, True), want, strict=True):
            assert torch.equal(got, expected)


def test_results_have_the_format_of_x(device: torch.device) -> None:
    for layout in (*LAYOUTS, "permuted"):
        x = make_case((2, 8, 3, 4), torch.float32, layout, device, ())["x"]
        y, mean, rstd = RAW["fwd"](x, *[None] * 5, 4, 1e-5, True)
        expected = SPECIFICATION.empty_like_x(x).stride()
        other = torch.ones_like(x, memory_format=torch.contiguous_format)
        assert y.stride() == RAW["bwd"](other, x, *[None] * 5, mean, rstd, 4, True)[0].stride() == expected
        assert RAW["jvp"](x, *[None] * 5, mean, rstd, other, *[None] * 5, 4, True).stride() == expected


def test_operands_may_differ_in_layout(path: str, device: torch.device) -> None:
    case = make_case((2, 8, 3, 4), torch.float32, "contiguous", device)
    other = like({"x": case["x"]}, 7)["x"]
    _, mean, rstd = RAW["fwd"](*raw(case), 4, 1e-5, True)
    grad = RAW["bwd"](other, *raw(case), mean, rstd, 4, True)
    tangent = RAW["jvp"](*raw(case), mean, rstd, other, *[None] * 5, 4, True)
    mixed = other.contiguous(memory_format=torch.channels_last)
    for got, want in zip(RAW["bwd"](mixed, *raw(case), mean, rstd, 4, True), grad, strict=True):
        assert torch.equal(got, want)
    assert torch.equal(RAW["jvp"](*raw(case), mean, rstd, mixed, *[None] * 5, 4, True), tangent)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_of_any_dtype_and_stride_shared_or_not(layout: str, path: str, device: torch.device) -> None:
    """bfloat16 x with float32 parameters, as under autocast; weight and bias may be (N, C) in the raw ops."""
    case = make_case((3, 12, 4, 5), torch.bfloat16, layout, device)
    for name in ("weight", "shift"):
        case[name] = case[name].float()
    case["bias"] = make_input((3, 12), dtype=torch.float16, device=device, seed=2)
    case["add"] = case["add"].t().contiguous().t()
    exact = {name: tensor.double() for name, tensor in case.items()}
    y, mean, rstd = RAW["fwd"](*raw(case), 3, 1e-5, True)
    in64 = SPECIFICATION.group_norm_silu_fwd(*raw(exact), 3, 1e-5, True)
    plain = SPECIFICATION.group_norm_silu_fwd(*raw(case), 3, 1e-5, True)
    assert_error_within_budget(y, in64[0], plain[0], "y")
    grad_y = like({"x": case["x"]}, 8)["x"]
    got = RAW["bwd"](grad_y, *raw(case), mean, rstd, 3, True)
    want = SPECIFICATION.group_norm_silu_bwd(grad_y.double(), *raw(exact), *in64[1:], 3, True)
    low = SPECIFICATION.group_norm_silu_bwd(grad_y, *raw(case), *plain[1:], 3, True)
    for k, name in enumerate(NAMES):
        assert got[k].dtype == case[name].dtype
        assert_error_within_budget(got[k], want[k], low[k], name, factor=3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [(), ("x",), ("add",), ("weight", "shift"), ("bias", "scale"), ("x", "scale")])
def test_absent_tangents_are_zero(given: tuple[str, ...], layout: str, path: str, device: torch.device) -> None:
    case = make_case((2, 12, 4, 5), torch.float64, layout, device)
    directions = [like(case, 9)[name] if name in given else None for name in NAMES]
    _, mean, rstd = SPECIFICATION.group_norm_silu_fwd(*raw(case), 4, 1e-5, True)
    got = RAW["jvp"](*raw(case), mean, rstd, *directions, 4, True)
    want = SPECIFICATION.group_norm_silu_jvp(*raw(case), mean, rstd, *directions, 4, True)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    if not {"x", "add"} & set(given):  # no group has to be summed over
        assert LAUNCHES == {"group_norm_silu_jvp_finish_kernel": 1, "group_norm_silu_jvp_apply_kernel": 1}


def test_empty(device: torch.device) -> None:
    for shape in ((0, 8, 3, 3), (2, 8, 0, 3)):
        case = make_case(shape, torch.float32, "contiguous", device)
        for kind, compute in QUANTITIES.items():
            got, want = (compute(f, case, 4) for f in (group_norm_silu, reference.group_norm_silu))
            for name in got:
                torch.testing.assert_close(got[name], want[name], msg=f"{kind} {name}")
        for got, want in zip(
            RAW["fwd"](*raw(case), 4, 1e-5, True),
            SPECIFICATION.group_norm_silu_fwd(*raw(case), 4, 1e-5, True),
            strict=True,
        ):
            torch.testing.assert_close(got, want)
    assert not LAUNCHES
    group_norm_silu(torch.ones(1, 2, 2, device=device), 1)


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vmap_and_second_derivatives(layout: str, path: str, device: torch.device) -> None:
    case = make_case((2, 6, 3, 2), torch.float64, layout, device)

    def call(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return values(function, dict(zip(NAMES, tensors, strict=True)), 3)["y"]

    def twice(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in case.values()]
        first = torch.autograd.grad(call(function, *leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for name, got, want in zip(NAMES, twice(group_norm_silu), twice(reference.group_norm_silu), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=name)

    many = {name: torch.stack([tensor, tensor.flip(0)]) for name, tensor in case.items()}
    many["x"] = many["x"] if layout == "contiguous" else many["x"].movedim(2, -1).contiguous().movedim(-1, 2)

    def loss(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return call(function, *tensors).square().sum()

    for function in (group_norm_silu, reference.group_norm_silu):
        mapped = torch.func.vmap(lambda *t, f=function: call(f, *t))(*many.values())
        grads = torch.func.vmap(torch.func.grad(lambda *t, f=function: loss(f, *t), argnums=(0, 1)))(*many.values())
        if function is group_norm_silu:
            kept = mapped, *grads
    for got, want in zip(kept, (mapped, *grads), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_does_not_depend_on_its_batch(layout: str, path: str, device: torch.device) -> None:
    case = make_case((3, 6, 3, 7), torch.float32, layout, device)
    other = like({"x": case["x"]}, 5)["x"]
    y, mean, rstd = RAW["fwd"](*raw(case), 2, 1e-5, True)
    grads = RAW["bwd"](other, *raw(case), mean, rstd, 2, True)
    y_t = RAW["jvp"](*raw(case), mean, rstd, other, *[None] * 5, 2, True)
    for n in range(3):
        alone = [t if t.ndim == 1 else t[n : n + 1] for t in raw(case)]
        statistics = mean[n : n + 1], rstd[n : n + 1]
        got = [*RAW["fwd"](*alone, 2, 1e-5, True), RAW["bwd"](other[n : n + 1], *alone, *statistics, 2, True)[0]]
        got.append(RAW["jvp"](*alone, *statistics, other[n : n + 1], *[None] * 5, 2, True))
        for result, whole in zip(got, (y, mean, rstd, grads[0], y_t), strict=True):
            assert torch.equal(result[0], whole[n])


def test_sums_over_the_batch_take_many_samples(device: torch.device) -> None:
    """More samples than a program of the parameters' gradients takes at once, and more channels."""
    assert_parity("gradient", make_case((70, 36, 2), torch.float32, "contiguous", device), 9)


# ------------------------------------------------------------------------------------------------ how it is shared out


def plan(groups: int, channels: int, pixels: int, last: bool, dtype: torch.dtype = torch.float32) -> shared.Plan:
    return shared.plan(groups, channels, pixels, last, dtype.itemsize, 16, 1024)


@pytest.mark.parametrize("last", [False, True])
def test_plan(last: bool, device: torch.device) -> None:
    for groups, channels, pixels in ((32, 4, 1024), (32, 8, 64), (32, 12, 256), (8, 4, 9), (1, 256, 16), (32, 16, 64)):
        assert plan(groups, channels, pixels, last).one_pass
    for groups, channels, pixels in ((32, 4, 256**2), (32, 8, 128**2), (1, 3, 500**2), (32, 4, 2048**2), (2, 2**14, 9)):
        got = plan(groups, channels, pixels, last)
        assert not got.one_pass
        assert got.chunks * got.groups <= 4 * shared.CHUNKS  # what every program of the second pass reads
        assert got.steps * got.ranges * got.pixels >= pixels > (got.ranges - 1) * got.steps * got.pixels
    # one 256 x 256 image of 128 channels: a program for each of the 132 multiprocessors of an H100, many times over
    got = plan(32, 4, 256**2, last)
    assert -(-32 // got.groups) * got.chunks >= 8 * 132
    group_norm_silu(torch.ones(1, 2, 2, device=device), 1)


def test_a_large_group_is_split_and_a_small_one_is_not(device: torch.device) -> None:
    for layout in LAYOUTS:
        assert_parity("value", make_case((1, 32, 65, 65), torch.float32, layout, device), 8)
        assert LAUNCHES == {"group_norm_silu_fwd_partials_kernel": 1, "group_norm_silu_fwd_apply_kernel": 1}
        LAUNCHES.clear()
        assert_parity("value", make_case((1, 32, 32, 32), torch.float32, layout, device), 8)
        assert LAUNCHES == {"group_norm_silu_fwd_kernel": 1}
        LAUNCHES.clear()
    group_norm_silu(torch.ones(1, 2, 2, device=device), 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_are_combined_some_at_a_time(layout: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts of a group than are read at once: many channels that are few pixels."""
    split(monkeypatch, chunks=2)
    for quantity in QUANTITIES:
        assert_parity(quantity, make_case((1, 300, 3), torch.float32, layout, device), 2)
    shared.plan.cache_clear()


@triton.jit
def places_kernel(starts, offsets, block, sub, pixel, pixels, tile: tl.constexpr):
    start, offset, _ = shared.place(tl.program_id(0) + block, sub, pixel, tl.cast(pixels, tl.int64), tile)
    tl.store(starts, start)
    row, column = tl.arange(0, tile.rows), tl.arange(0, tile.pixels)
    tl.store(offsets + row[:, None] * tile.pixels + column[None, :], offset)


@pytest.mark.parametrize("last", [False, True])
def test_offsets_of_64_bits(last: bool, device: torch.device) -> None:
    """Where a tile lies in a sample of 2^35 elements."""
    group, pixels, pixel = 7, 2**30, 2**30 - 4
    tile = shared.Tile(1, 4, 4, last, sample_groups=8, group_channels=4, pixel_unit=1, stride_unit=1)
    starts = torch.empty(1, dtype=torch.int64, device=device)
    offsets = torch.empty(4, 4, dtype=torch.int64, device=device)
    places_kernel[(1,)](starts, offsets, group, 0, torch.tensor(pixel).item(), pixels, tile=tile)
    channel, column = torch.arange(4)[:, None] + group * 4, torch.arange(4)[None, :] + pixel
    want = column * 32 + channel if last else channel * pixels + column
    assert torch.equal((starts + offsets).cpu(), want)
    group_norm_silu(torch.ones(1, 2, 2, device=device), 1)


@pytest.mark.no_poison  # most of the memory is never touched
def test_samples_2_to_the_31_elements_apart(path: str, device: torch.device) -> None:
    case = make_case((2, 4, 3, 4), torch.float16, "contiguous", device)
    memory = torch.empty(2**31 + 64, dtype=torch.float16, device=device)
    far = memory.as_strided((2, 4, 3, 4), (2**31, 12, 4, 1)).copy_(case["x"])
    assert torch.equal(
        RAW["fwd"](far, *[None] * 5, 2, 1e-5, True)[0], RAW["fwd"](case["x"], *[None] * 5, 2, 1e-5, True)[0]
    )

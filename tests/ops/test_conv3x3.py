"""conv3x3: every method against the definition, what must not change, derivatives, kept weights, bad arguments."""

import gc
import importlib
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastscore import _backend, _library, reference
from fastscore.ops import conv3x3
from fastscore.ops._derivatives import inputs_only
from fastscore.ops.conv3x3 import transformed_bytes
from fastscore.reference.conv3x3 import conv3x3_weights, conv3x3_winograd, turned
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.ops import (
    DTYPES,
    Rows,
    assert_bits_hold_by_batch,
    assert_bits_hold_by_threads_and_format,
    run_on,
)

RAW = torch.ops.fastscore.conv3x3_winograd.default
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")
WINOGRAD = ("winograd2", "winograd4")
STORED = (torch.float32, torch.bfloat16)
# (B, C, H, W), outputs: less than a vector, a part of a panel, several depths and chunks of channels, several panels,
# tiles that are cut off, one tile, several blocks of strips
SHAPES = [
    ((2, 1, 4, 4), 1), ((1, 3, 7, 5), 2), ((3, 20, 6, 9), 40), ((1, 300, 8, 4), 17), ((2, 33, 1, 1), 70),
    ((5, 64, 16, 16), 24), ((1, 8, 2, 70), 3),
]  # fmt: skip
EXTRAS = ("bias", "shift", "residual", "gain", "offset")


def make_case(shape, outputs, layout="contiguous", dtype=torch.float32, **chosen):
    """x, weight and keywords: all that can stand around, or those chosen."""
    batch, channels, height, width = shape
    shapes = {
        "bias": (outputs,),
        "shift": (batch, outputs),
        "residual": (batch, outputs, height, width),
        "gain": (batch, channels),
        "offset": (batch, channels),
    }
    x = make_input(shape, layout, dtype=dtype)
    weight = make_input((outputs, channels, 3, 3), dtype=dtype, scale=(9 * channels) ** -0.5, seed=1)
    extras = {
        name: make_input(size, layout if name == "residual" else "contiguous", dtype=dtype, seed=seed)
        for seed, (name, size) in enumerate(shapes.items(), 2)
    }
    return (
        x,
        weight,
        {**extras, "silu": True, "scale": 0.5**0.5} if not chosen else {k: v for k, v in extras.items() if k in chosen},
    )


def definition(
    x: Tensor, weight: Tensor, bias=None, *, gain=None, offset=None, silu=False, shift=None, residual=None, scale=1.0
) -> Tensor:
    """Nine shifted products, in the dtype of x."""
    if gain is not None:
        x = x * gain[:, :, None, None] + offset[:, :, None, None]
    if silu:
        x = x * torch.sigmoid(x)
    height, width = x.shape[2:]
    padded, out = F.pad(x, (1, 1, 1, 1)), 0
    for i in range(3):
        for j in range(3):
            out = out + torch.einsum("bchw,kc->bkhw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    for term in (bias[None] if bias is not None else None, shift):
        out = out if term is None else out + term[:, :, None, None]
    return (out if residual is None else out + residual) * scale


def double(values: dict) -> dict:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in values.items()}


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES[:4], ids=str)
def test_winograd_is_the_convolution(shape, outputs, tile):
    x, weight, around = make_case(shape, outputs, dtype=torch.float64)
    weights = conv3x3_weights(weight, tile, 16)
    names = ("bias", "shift", "residual", "scale", "gain", "offset", "silu")
    actual = conv3x3_winograd(x, weights, outputs, tile, *(around[name] for name in names))
    torch.testing.assert_close(actual, definition(x, weight, **around), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_direct_by_layout(layout, dtype):
    x, weight, around = make_case((3, 4, 6, 10), 5, layout, dtype)
    around = {k: v[: len(x)] if isinstance(v, Tensor) and k != "bias" else v for k, v in around.items()}
    actual = conv3x3(x, weight, method="direct", **around)
    expected = definition(x.double(), weight.double(), **double(around))
    if dtype == torch.float64:
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    else:
        assert_error_within_budget(actual, expected, definition(x, weight, **around), "conv3x3")


def close_to(actual, x, weight, around):
    """In the norm, at most twice the error of torch's convolution of channels-last images, as the kernels take them.

    Of few channels torch's errs by less than the transforms alone, 3e-7. bfloat16 must err as if rounded once.
    """
    expected = definition(x.double(), weight.double(), **double(around))
    assert actual.dtype == x.dtype
    if x.dtype == torch.bfloat16:
        once = float((expected.bfloat16().double() - expected).norm())
        assert float((actual.double() - expected).norm()) <= 1.001 * once
        return
    plain = reference.conv3x3(x.contiguous(memory_format=torch.channels_last), weight, **around)
    error, theirs = (float((value.double() - expected).norm() / expected.norm()) for value in (actual, plain))
    assert error <= 2 * max(theirs, 3e-7), (error, theirs)


@native
@pytest.mark.parametrize("method", WINOGRAD)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("shape", "outputs"), SHAPES, ids=str)
def test_winograd_by_shape(shape, outputs, dtype, layout, method):
    x, weight, around = make_case(shape, outputs, layout, dtype)
    actual = conv3x3(x, weight, method=method, **around)
    close_to(actual, x, weight, around)
    last = layout == "channels_last" and min(shape[1:]) > 1
    assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@native
@pytest.mark.parametrize("name", [*EXTRAS[:3], "gain"])
@pytest.mark.parametrize("method", WINOGRAD)
def test_each_part_alone(name, method):
    chosen = {name: True, **({"offset": True} if name == "gain" else {})}
    x, weight, around = make_case((2, 5, 6, 7), 9, **chosen)
    close_to(conv3x3(x, weight, method=method, **around), x, weight, around)


@native
@pytest.mark.parametrize("method", WINOGRAD)
def test_large_normals_and_means(method):
    """Of 256 channels with a mean: what is lost, is lost to torch too."""
    x = make_input((1, 256, 16, 16), mean=10.0)
    weight = make_input((64, 256, 3, 3), scale=1 / 48, seed=1)
    close_to(conv3x3(x, weight, method=method), x, weight, {})


@native
@pytest.mark.parametrize("method", ["direct", *WINOGRAD])
def test_zero_sizes(method):
    weight = torch.ones(3, 2, 3, 3)
    assert conv3x3(torch.ones(0, 2, 4, 4), weight, method=method).shape == (0, 3, 4, 4)


# ------------------------------------------------------------------------------------------------ kernels


@native
@pytest.mark.parametrize("method", WINOGRAD)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", STORED)
def test_weights_are_transformed_as_the_reference_does(dtype, method, transposed):
    weight = make_input((21, 35, 3, 3), "channels_last", dtype=dtype)
    actual = torch.ops.fastscore.conv3x3_weights(weight, int(method[-1]), transposed)
    expected = conv3x3_weights(turned(weight) if transposed else weight, int(method[-1]), actual.shape[-1])
    assert actual.dtype == torch.float32
    # numbers of 8 bits may cancel to the last one, but for roundings in double
    torch.testing.assert_close(actual, expected, rtol=1.2e-7, atol=1e-15)


@native
@pytest.mark.parametrize("method", WINOGRAD)
@pytest.mark.parametrize("dtype", STORED)
def test_bits_do_not_depend_on_batch_threads_or_format(dtype, method, threads):
    shape = (12, 40, 9, 13)
    x, weight, around = make_case(shape, 50, dtype=dtype)
    rows_of = ("shift", "residual", "gain", "offset")

    def call(rows: Rows, layout: str) -> Tensor:
        mine = {name: value[rows] if name in rows_of else value for name, value in around.items()}
        return conv3x3(as_layout(x[rows], layout), weight, method=method, **mine)

    assert_bits_hold_by_batch(call, assert_bits_hold_by_threads_and_format(call, shape, threads))


@native
def test_every_instruction_set(isa, tmp_path):
    cases = [
        (*make_case(shape, outputs, dtype=dtype), method)
        for shape, outputs in SHAPES
        for method in WINOGRAD
        for dtype in STORED
    ]
    program = "results = [fastscore.ops.conv3x3(x, w, method=method, **around) for x, w, around, method in cases]"
    results, launches = run_on(isa, program, cases, tmp_path)
    assert launches == {f"conv3x3_winograd.{isa}": len(cases), f"conv3x3_weights.{isa}": len(cases)}
    for (x, weight, around, _), actual in zip(cases, results, strict=True):
        close_to(actual, x, weight, around)


@native
def test_backends_ran():
    x, weight, around = make_case((2, 20, 8, 8), 20)
    isa = _library.build_info()["isa"]
    for method in WINOGRAD:
        _library.NATIVE.reset_launches()
        conv3x3(x, weight, method=method, **around)
        assert _library.NATIVE.launches() == {f"conv3x3_winograd.{isa}": 1, f"conv3x3_weights.{isa}": 1}
        with _backend.backend("reference"):
            expected = conv3x3(x, weight, method=method, **around)
        assert torch.equal(expected, reference.conv3x3(x, weight, **around))
        assert _library.NATIVE.launches()[f"conv3x3_winograd.{isa}"] == 1


@native
@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "allowed", "method"),
    [
        (True, True, None, "direct"), (True, True, "AVX512_CORE_AMX", "direct"), (True, True, "AVX2", "winograd4"),
        (False, True, None, "winograd4"), (False, False, None, "winograd4"),
    ],
)  # fmt: skip
def test_bfloat16_is_left_to_torch_where_the_cpu_has_amx(amx, avx512_bf16, allowed, method, monkeypatch):
    module = importlib.import_module("fastscore.ops.conv3x3")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    else:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    for cached in (module.cheapest, module._bfloat16_cost):
        cached.cache_clear()
    x, weight = make_input((4, 128, 32, 32), dtype=torch.bfloat16), make_input((128, 128, 3, 3), dtype=torch.bfloat16)
    _library.NATIVE.reset_launches()
    conv3x3(x, weight)
    ran = _library.NATIVE.launches().get(f"conv3x3_winograd.{_library.build_info()['isa']}", 0)
    for cached in (module.cheapest, module._bfloat16_cost):
        cached.cache_clear()
    assert ran == (method != "direct")


# ------------------------------------------------------------------------------------------------ kept weights


@native
def test_transformed_weights_follow_the_parameter():
    x, weight, _ = make_case((1, 4, 8, 8), 6)
    isa = _library.build_info()["isa"]

    def counted():
        _library.NATIVE.reset_launches()
        out = conv3x3(x, weight, method="winograd4")
        return out, _library.NATIVE.launches().get(f"conv3x3_weights.{isa}", 0)

    first, made = counted()
    assert made == 1
    again, made = counted()
    assert made == 0
    assert torch.equal(again, first)
    with torch.no_grad():
        weight.mul_(2)
    twice, made = counted()
    assert made == 1
    torch.testing.assert_close(twice, 2 * first)
    weight.data = weight.data.clone().zero_()  # the version stays, the memory is another
    assert not counted()[0].any()


@native
def test_transformed_weights_die_with_the_parameter():
    gc.collect()
    before = transformed_bytes()
    x, weight, _ = make_case((1, 16, 8, 8), 32)
    conv3x3(x, weight, method="winograd4")
    conv3x3(x, weight, method="winograd2")
    assert transformed_bytes() == before + (36 + 16) * 16 * 32 * 4
    del weight
    gc.collect()
    assert transformed_bytes() == before


# ------------------------------------------------------------------------------------------------ derivatives


def test_gradcheck_direct():
    x, weight, around = make_case((2, 2, 3, 4), 3, dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (x, weight, *(around[name] for name in EXTRAS))]

    def call(x, weight, *extras):
        return conv3x3(x, weight, **dict(zip(EXTRAS, extras, strict=True)), silu=True, scale=0.7)

    assert torch.autograd.gradcheck(call, tensors, check_forward_ad=True)


@native
@pytest.mark.parametrize("method", WINOGRAD)
def test_derivatives_are_those_of_the_definition(method):
    x, weight, around = make_case((2, 24, 9, 8), 20)
    tensors = (x, weight, *(around[name] for name in EXTRAS))
    tangents = tuple(make_input(tuple(t.shape), seed=20 + k) for k, t in enumerate(tensors))
    cotangent = make_input((2, 20, 9, 8), seed=40)

    def call(function, **more):
        return lambda x, w, *e: function(x, w, **dict(zip(EXTRAS, e, strict=True)), silu=True, scale=0.7, **more)

    ours, exact = call(conv3x3, method=method), call(definition)
    wide = tuple(t.double() for t in tensors)
    grads = torch.func.vjp(ours, *tensors)[1](cotangent)
    for actual, expected in zip(grads, torch.func.vjp(exact, *wide)[1](cotangent.double()), strict=True):
        assert (actual - expected).norm() <= 2e-6 * expected.norm()
    along = torch.func.jvp(ours, tensors, tangents)[1]
    expected = torch.func.jvp(exact, wide, tuple(t.double() for t in tangents))[1]
    assert (along - expected).norm() <= 2e-6 * expected.norm()


@native
@pytest.mark.parametrize("method", WINOGRAD)
def test_derivatives_of_bfloat16_are_rounded_once(method):
    x, weight, _ = make_case((2, 24, 9, 8), 20, dtype=torch.bfloat16)
    cotangent = make_input((2, 20, 9, 8), dtype=torch.bfloat16, seed=40)
    _library.NATIVE.reset_launches()
    (grad,) = torch.func.vjp(lambda x: conv3x3(x, weight, method=method), x)[1](cotangent)
    _, along = torch.func.jvp(lambda x: conv3x3(x, weight, method=method), (x,), (x.flip(0),))
    assert _library.NATIVE.launches()[f"conv3x3_winograd.{_library.build_info()['isa']}"] == 4
    close_to(grad, cotangent, turned(weight), {})
    close_to(along, x.flip(0), weight, {})


@native
def test_the_gradient_is_a_launch_and_so_is_its_gradient():
    x, weight, _ = make_case((1, 8, 6, 6), 8)
    x.requires_grad_()
    isa = _library.build_info()["isa"]
    _library.NATIVE.reset_launches()
    (grad,) = torch.autograd.grad(conv3x3(x, weight, method="winograd4").square().sum(), x, create_graph=True)
    assert _library.NATIVE.launches()[f"conv3x3_winograd.{isa}"] == 2
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert _library.NATIVE.launches()[f"conv3x3_winograd.{isa}"] == 4
    exact = x.detach().double().requires_grad_()
    (g,) = torch.autograd.grad(definition(exact, weight.double()).square().sum(), exact, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(g.square().sum(), exact)[0].float(), rtol=2e-5, atol=2e-4)


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@native
def test_gradients_of_parameters_may_be_left_out():
    """Those that are leaves: a weight that is computed from the input passes its gradient on to it."""
    x, weight, _ = make_case((1, 8, 6, 6), 8)
    weight.requires_grad_()
    for only in (False, True):
        x.requires_grad_()
        with inputs_only() if only else nullcontext():
            out = conv3x3(x, weight, method="winograd4").sum()
        with Operators() as ran:
            torch.autograd.grad(out, x)
        assert ("aten::convolution_backward" in ran.names) == (not only)

    def made(x):
        return conv3x3(x, weight.detach() * x.sum(), method="winograd4").sum()

    with inputs_only():
        out = made(x)
    (actual,) = torch.autograd.grad(out, x)
    torch.testing.assert_close(actual, torch.autograd.grad(made(x), x)[0])


def test_the_gradient_of_a_closed_transform_with_a_trained_weight():
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3, requires_grad=True)
    grads = [
        torch.func.vjp(lambda x, method=method: conv3x3(x, weight, method=method), x)[1](x)[0]
        for method in ("winograd4", "direct")
    ]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@native
@pytest.mark.parametrize("method", WINOGRAD)
def test_vmap_joins_the_batch(method):
    weight = make_input((5, 4, 3, 3), seed=1)
    several = make_input((3, 2, 4, 6, 6))
    mapped = torch.func.vmap(lambda x: conv3x3(x, weight, method=method))(several)
    expected = torch.stack([conv3x3(x, weight, method=method) for x in several])
    assert torch.equal(mapped, expected)
    per_weight = torch.func.vmap(lambda w: conv3x3(several[0], w, method=method))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(per_weight[1], 2 * F.conv2d(several[0], weight, padding=1), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", STORED)
def test_opcheck(dtype, layout):
    x, weight, around = make_case((2, 5, 6, 8), 7, layout, dtype)
    weights = torch.ops.fastscore.conv3x3_weights(weight, 4, False)
    names = ("bias", "shift", "residual", "scale", "gain", "offset", "silu")
    torch.library.opcheck(RAW, (x, weights, 7, 4, *(around[name] for name in names)))
    torch.library.opcheck(torch.ops.fastscore.conv3x3_weights.default, (weight, 4, True))


def test_compiled_it_is_the_convolution():
    x, weight, around = make_case((1, 4, 8, 8), 4)
    compiled = torch.compile(lambda x, w: conv3x3(x, w, **around), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), reference.conv3x3(x, weight, **around))


def test_fake_tensors():
    with FakeTensorMode():
        out = conv3x3(torch.empty(2, 3, 8, 8, device="cuda"), torch.empty(5, 3, 3, 3, device="cuda"))
    assert out.shape == (2, 5, 8, 8)
    assert out.device.type == "cuda"


# ------------------------------------------------------------------------------------------------ bad arguments

X, W = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"x must have shape \(B, C, H, W\), got \(3, 4, 4\)", {"x": X[0]}),
        (TypeError, "weight must be a tensor, got list", {"weight": [1.0]}),
        (ValueError, r"weight must have shape \(K, 3, 3, 3\), got \(5, 2, 3, 3\)", {"weight": W[:, :2]}),
        (ValueError, r"weight must have shape \(K, 3, 3, 3\), got \(5, 3, 1, 3\)", {"weight": W[:, :, :1]}),
        (TypeError, "weight must have the dtype of x, torch.float32, got torch.float64", {"weight": W.double()}),
        (ValueError, r"bias must have shape \(5,\), got \(3,\)", {"bias": torch.zeros(3)}),
        (ValueError, r"shift must have shape \(2, 5\), got \(5,\)", {"shift": torch.zeros(5)}),
        (ValueError, r"residual must have shape \(2, 5, 4, 4\), got \(2, 3, 4, 4\)", {"residual": X}),
        (ValueError, "offset must be given with the other, got None", {"gain": torch.zeros(2, 3)}),
        (ValueError, "bias must be on the device of x, cpu, got meta", {"bias": torch.zeros(5, device="meta")}),
        (TypeError, "scale must be a number, got str", {"scale": "1"}),
        (ValueError, "method must be one of auto, direct, winograd2, winograd4, got 'fft'", {"method": "fft"}),
        (
            ValueError,
            "method must be auto or direct but for float32 or bfloat16 on a CPU, with the native library, got 'wino",
            {"x": X.double(), "weight": W.double(), "method": "winograd4"},
        ),
    ],
)
def test_bad_arguments_are_refused(error, message, arguments):
    with pytest.raises(error, match=f"conv3x3: {message}"):
        conv3x3(**{"x": X, "weight": W, **arguments})

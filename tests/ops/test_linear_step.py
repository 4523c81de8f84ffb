"""linear_step: every version against the reference, its derivatives, its traces, and what must not change a bit."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from fastscore import _backend, _library, reference
from fastscore._checks import accumulation_dtype
from fastscore.ops import linear_step, linear_step_
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.linear_step import make_case
from fastscore.testing.ops import (
    BAD_HISTORY,
    BAD_NOISE,
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

RAW = torch.ops.fastscore.linear_step.default
RAW_ = torch.ops.fastscore.linear_step_.default
# One element a sample, less than a vector, more than a tile, channels-last with and without whole blocks of 4 pixels.
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 5, 33, 31), (2, 300, 2, 3), (2, 3, 4, 5, 6))

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def oracle(x: Tensor, history: list[Tensor], coefficients: Tensor, keywords: dict[str, Tensor]) -> Tensor:
    in64 = {k: v.double() if v.is_floating_point() else v for k, v in keywords.items()}
    return reference.linear_step(x.double(), [h.double() for h in history], coefficients.double(), **in64)


def assert_parity(
    actual: Tensor, x: Tensor, history: list[Tensor], coefficients: Tensor, keywords: dict[str, Tensor]
) -> None:
    plain = reference.linear_step(x, history, coefficients, **keywords)
    assert actual.stride() == plain.stride()
    if x.dtype == torch.float64:
        # The oracle rounds as much as the kernel does: each is within (products and sums) * u * sum |term| of the
        # truth, and a normal within 4 units in the last place.
        z = reference.linear_step(torch.zeros_like(x), [], coefficients.new_tensor([0.0, 1.0]), **keywords).abs()
        size = reference.linear_step(x.abs(), [h.abs() for h in history], coefficients.abs(), noise=z)
        operations = 2 * (len(history) + 2) + 4
        assert ((actual - plain).abs() <= 2 * operations * 2.0**-53 * size).all()
        return
    assert_error_within_budget(actual, oracle(x, history, coefficients, keywords), plain, "linear_step")


# ------------------------------------------------------------------------------------------------ values


@native
@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for per_sample in (False, True):
            x, history, rows, keywords = make_case(shape, dtype, layout, noise=noise, per_sample=per_sample)
            with _backend.backend("cpu"):
                assert_parity(linear_step(x, history, rows, **keywords), x, history, rows, keywords)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_by_layout(layout: str, dtype: torch.dtype) -> None:
    for noise in ("drawn", "given", "none"):
        x, history, rows, keywords = make_case((4, 3, 6, 10), dtype, layout, noise=noise)
        assert_parity(linear_step(x, history, rows, **keywords), x, history, rows, keywords)


@native
@pytest.mark.parametrize("terms", range(7))
def test_parity_by_history(terms: int) -> None:
    for noise in ("drawn", "given", "none"):
        x, history, rows, keywords = make_case((3, 50), terms=terms, noise=noise)
        assert_parity(linear_step(x, history, rows, **keywords), x, history, rows, keywords)


@native
def test_operands_may_differ_in_layout() -> None:
    x, history, rows, keywords = make_case((4, 3, 6, 10), terms=4, noise="given")
    want = linear_step(x, history, rows, **keywords)
    mixed = [as_layout(h, layout) for h, layout in zip(history, LAYOUTS[:4], strict=True)]
    for layout in ("contiguous", "channels_last", "permuted", "sliced"):
        noise = as_layout(keywords["noise"], "permuted")
        assert torch.equal(linear_step(as_layout(x, layout), mixed, rows.flip(0).flip(0), noise=noise), want)


@native
def test_strided_coefficients() -> None:
    x, history, rows, keywords = make_case((4, 10), per_sample=True)
    want = linear_step(x, history, rows, **keywords)
    assert torch.equal(linear_step(x, history, rows.t().contiguous().t(), **keywords), want)
    table = torch.stack([rows[0], rows[1]])
    assert torch.equal(linear_step(x, history, table[1], **keywords)[1], want[1])
    assert torch.equal(linear_step(x, history, table[1].expand(4, -1), **keywords)[1], want[1])


@native
@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_noise_of_weight_zero_is_not_looked_at(noise: str, per_sample: bool) -> None:
    x, history, rows, keywords = make_case((3, 40), noise=noise, per_sample=per_sample)
    rows[..., -1] = 0
    without = linear_step(x, history, rows)
    if noise == "given":
        keywords["noise"] = torch.full_like(x, float("nan"))
    assert torch.equal(linear_step(x, history, rows, **keywords), without)
    assert torch.equal(reference.linear_step(x, history, rows, **keywords), reference.linear_step(x, history, rows))


@native
def test_nan_in_the_state_stays() -> None:
    x, history, rows, keywords = make_case((3, 40))
    x[1, 7] = float("nan")
    assert torch.isnan(linear_step(x, history, rows, **keywords)).nonzero().tolist() == [[1, 7]]


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    x, history, rows, keywords = make_case((4, 3, 6, 10), layout=layout)
    assert_one_native_launch("linear_step", layout, lambda: linear_step(x, history, rows, **keywords))


@native
def test_raw_launcher() -> None:
    x, history, rows, keywords = make_case((4, 30))
    assert torch.equal(
        _library.NATIVE.linear_step_cpu(x, history, rows, **keywords), RAW(x, history, rows, None, *keywords.values())
    )
    with pytest.raises(ValueError, match="linear_step_cpu: x must be a cpu tensor, got one on meta"):
        _library.NATIVE.linear_step_cpu(x.to("meta"), history, rows)


def test_reference_is_the_formula() -> None:
    x, history, rows, keywords = make_case((3, 4, 5), torch.float64, noise="given", per_sample=True)
    for b in range(3):
        a, b1, b2, s = rows[b]
        want = a * x[b] + b1 * history[0][b] + b2 * history[1][b] + s * keywords["noise"][b]
        torch.testing.assert_close(reference.linear_step(x, history, rows, **keywords)[b], want, rtol=1e-15, atol=1e-15)


# ------------------------------------------------------------------------------------------------ to the last bit


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 5), (12, 3, 33, 31)])
def test_bits_do_not_depend_on_batch_threads_or_format(shape: tuple[int, ...], dtype: torch.dtype, threads) -> None:
    x, history, rows, keywords = make_case(shape, dtype)

    def step(some: Rows, layout: str) -> Tensor:
        moved = [as_layout(tensor[some], layout) for tensor in (x, *history)]
        return linear_step(moved[0], moved[1:], rows, rng=RNG, samples=keywords["samples"][some])

    assert_bits_hold_by_batch(step, assert_bits_hold_by_threads_and_format(step, shape, threads))


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "empty"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_is_out_of_place(layout: str, dtype: torch.dtype) -> None:
    x, history, rows, keywords = make_case((3, 3, 6, 7), dtype, layout)
    want = linear_step(x, history, rows, **keywords)
    state = as_layout(x.clone(), layout)
    address = state.data_ptr()
    assert linear_step_(state, history, rows, **keywords) is state
    assert state.data_ptr() == address
    assert torch.equal(state, want)


@native
def test_in_place_with_the_state_as_history() -> None:
    x, history, rows, keywords = make_case((3, 40))
    for first in (x, x[:1].expand_as(x)):  # the second is overwritten while other rows still need it
        want = linear_step(x, [first, history[0]], rows, **keywords)
        assert torch.equal(linear_step_(x, [first, history[0]], rows, **keywords), want)
    buffer = torch.randn(2, 3, 40)  # neighbors in one storage
    want = linear_step(buffer[0], [buffer[1], history[0]], rows, **keywords)
    assert torch.equal(linear_step_(buffer[0], [buffer[1], history[0]], rows, **keywords), want)


@native
def test_drawn_is_the_noise_function() -> None:
    from fastscore.reference.philox import philox_normal

    for dtype in (torch.float32, torch.float64):
        x, _, _, keywords = make_case((3, 3, 5, 7), dtype)
        z = linear_step(torch.zeros_like(x), (), torch.tensor([0.0, 1.0], dtype=dtype), **keywords)
        exact = philox_normal(x.shape, RNG, keywords["samples"], torch.float64)
        ulp = torch.finfo(dtype).eps * 2.0 ** exact.abs().log2().floor()
        assert ((z.double() - exact).abs() <= 4 * ulp).all()  # what fastscore.noise promises
        rows = torch.tensor([0.3, 1.7], dtype=dtype)
        assert torch.equal(linear_step(x, (), rows, **keywords), linear_step(x, (), rows, noise=z))
    low = torch.zeros(3, 100, dtype=torch.bfloat16)
    keywords["rng"] = RNG
    full = linear_step(low.float(), (), torch.tensor([0.0, 1.0]), **keywords)
    assert torch.equal(linear_step(low, (), torch.tensor([0.0, 1.0]), **keywords), full.bfloat16())


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        make_case(shape, dtype, noise=noise)
        for shape in ((3, 2163), (2, 3, 7, 9))
        for dtype in DTYPES
        for noise in ("drawn", "given")
    ]
    cases += [make_case((2, 37), terms=6, noise=noise) for noise in ("drawn", "given")]
    special = torch.tensor(
        [[0.0, -0.0, 1e-8, 6e-8, 6.2e-5, 65504.0, 65520.0, 1e6, float("inf"), -float("inf"), float("nan")]]
    )
    for dtype in (torch.float16, torch.bfloat16):  # conversions of zeros, subnormals, overflow, infinities, NaN
        cases += [(special.to(dtype).repeat(1, 9), [], torch.tensor([weight, 0.0]), {}) for weight in (1.0, 0.5, 2.0)]
    results = run_op_on(isa, "linear_step", cases, tmp_path)
    for (x, history, rows, keywords), actual in zip(cases, results, strict=True):
        if torch.isfinite(x).all():
            assert_parity(actual, x, history, rows, keywords)
        else:
            torch.testing.assert_close(actual, (x.float() * rows[0]).to(x.dtype), rtol=0, atol=0, equal_nan=True)


# ------------------------------------------------------------------------------------------------ CUDA


@pytest.mark.gpu
@pytest.mark.skipif(_backend.why_not("cuda") is not None, reason=f"cuda: {_backend.why_not('cuda')}")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_parity(layout: str, dtype: torch.dtype) -> None:
    for shape, noise in (
        ((4, 3, 6, 10), "drawn"),
        ((4, 3, 6, 10), "given"),
        ((2, 4, 64, 64), "drawn"),
        ((2, 1, 7, 9), "none"),
    ):
        x, history, rows, keywords = make_case(shape, dtype, layout, noise=noise, per_sample=True)
        moved = as_layout(x.cuda(), layout), [as_layout(h.cuda(), layout) for h in history], rows.cuda()
        given = {name: value.cuda() for name, value in keywords.items()}
        _library.NATIVE.reset_launches()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = linear_step(*moved, **given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert _library.NATIVE.launches() == ({} if layout == "empty" else {"linear_step.cuda": 1})
        assert_parity(out.cpu(), x, history, rows, keywords)
        if layout != "expanded":
            assert torch.equal(linear_step_(moved[0].clone(), *moved[1:], **given), out)


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_gradcheck(noise: str, per_sample: bool, chosen: str) -> None:
    x, history, rows, keywords = make_case((2, 2, 3), torch.float64, noise=noise, per_sample=per_sample)
    z = keywords.pop("noise", torch.zeros((), dtype=torch.float64))
    inputs = [t.requires_grad_() for t in (x, rows, z, *history)]

    def call(x: Tensor, rows: Tensor, z: Tensor, *history: Tensor) -> Tensor:
        given = {"noise": z} if noise == "given" else keywords
        # z takes part in every call, so that gradcheck finds a gradient for it.
        return linear_step(x, history, rows, **given) + 0 * z

    with _backend.backend(chosen):
        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=chosen == "auto",
                                        check_batched_forward_grad=False)  # fmt: skip
        assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_gradients_within_budget(dtype: torch.dtype, noise: str) -> None:
    def gradients(function, dtype: torch.dtype) -> list[Tensor]:
        x, history, rows, keywords = make_case(
            (3, 3, 8, 9), torch.float64, "channels_last", noise=noise, per_sample=True
        )
        leaves = [
            x.to(low).to(dtype),
            *(h.to(low).to(dtype) for h in history),
            rows.to(accumulation_dtype(low)).to(accumulation_dtype(dtype)),
        ]
        if noise == "given":
            leaves.append(keywords.pop("noise").to(low).to(dtype))
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        given = {"noise": leaves[4]} if noise == "given" else keywords
        out = function(leaves[0], leaves[1:3], leaves[3], **given)
        weight = make_input(tuple(x.shape), dtype=torch.float64, seed=7).to(low).to(dtype)
        return list(torch.autograd.grad(out, leaves, weight))

    low = dtype
    _library.NATIVE.reset_launches()
    actual = gradients(linear_step, dtype)
    assert sum(_library.NATIVE.launches().values()) == 4 + 1, "forward, three gradients, and the noise or its gradient"
    exact, plain = gradients(reference.linear_step, torch.float64), gradients(reference.linear_step, dtype)
    for name, a, e, p in zip(("x", "h0", "h1", "coefficients", "noise"), actual, exact, plain, strict=False):
        assert_error_within_budget(a, e, p, f"gradient of {name}", factor=3)


@pytest.mark.parametrize("again", ["", "history", "noise"])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_in_place_with_gradients(again: str, chosen: str) -> None:
    """Also where the state is another argument, too."""
    x, history, rows, keywords = make_case((3, 40), torch.float64, noise="given")
    leaves = [t.requires_grad_() for t in (x, rows, *history, *keywords.values())]

    def result(function) -> tuple[Tensor, ...]:
        out = x * 1
        for _ in range(2):
            given = {"history": history, **keywords}
            given |= {"history": [out, history[1]]} if again == "history" else {"noise": out} if again else {}
            out = function(out, coefficients=rows, **given)
        return out, *torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True, allow_unused=True)

    with _backend.backend(chosen):
        actual, want = result(linear_step_), result(linear_step)
    assert torch.equal(actual[0], want[0])
    for one, other in zip(actual[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dual_numbers_outside_torch_func() -> None:
    x, history, rows, keywords = make_case((2, 5), torch.float64)
    tangent = make_input((2, 5), dtype=torch.float64, seed=3)
    with forward_ad.dual_level():
        out = linear_step(forward_ad.make_dual(x, tangent), history, rows, **keywords)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, rows[0] * tangent)


def test_torch_func() -> None:
    x, history, rows, keywords = make_case((2, 3, 4), torch.float64)

    def of(function):
        return lambda x, rows: function(x, history, rows, **keywords)

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        for argument in (0, 1):
            actual = transform(of(linear_step), argnums=argument)(x, rows)
            expected = transform(of(reference.linear_step), argnums=argument)(x, rows)
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    primal, tangent = torch.func.jvp(of(linear_step), (x, rows), (x, rows))
    expected = torch.func.jvp(of(reference.linear_step), (x, rows), (x, rows))
    torch.testing.assert_close((primal, tangent), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mapped", ["x", "history", "rows", "noise", "samples", "all"])
def test_vmap(mapped: str) -> None:
    cases = [make_case((2, 3, 4), noise="given" if mapped == "noise" else "drawn", per_sample=i > 9) for i in range(3)]
    x, history, rows, keywords = cases[0]
    arguments = {"x": x, "history": history[0], "rows": rows, **keywords}
    which = ["x", "history", "rows", "samples"] if mapped == "all" else [mapped]

    def call(values: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
        given = {**others, **values}
        x, h, rows = (given.pop(name) for name in ("x", "history", "rows"))
        return linear_step(x, [h, history[1]], rows, **given)

    values = {name: torch.stack([arguments[name] + i for i in range(3)], 1) for name in which}
    others = {name: value for name, value in arguments.items() if name not in which}
    actual = torch.func.vmap(call, in_dims=(1, None))(values, others)
    for i in range(3):
        assert torch.equal(actual[i], call({name: arguments[name] + i for name in which}, others))


def test_vmap_over_rng_is_refused() -> None:
    x, history, rows, keywords = make_case((2, 3))
    with pytest.raises(ValueError, match="rng must not be mapped by vmap; map samples instead"):
        torch.func.vmap(lambda rng: linear_step(x, history, rows, rng=rng, samples=keywords["samples"]))(
            RNG.expand(3, 2)
        )


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("noise", ["drawn", "given", "none"])
def test_opcheck(layout: str, noise: str) -> None:
    x, history, rows, keywords = make_case((3, 2, 4, 5), torch.float32, layout, noise=noise)
    arguments = (history, rows, keywords.get("noise"), keywords.get("rng"), keywords.get("samples"))
    torch.library.opcheck(RAW, (x, *arguments))
    if layout != "expanded":
        torch.library.opcheck(RAW_, (as_layout(x.clone(), layout), *arguments))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes(device: str, layout: str) -> None:
    x, history, rows, keywords = make_case((3, 2, 4, 5), torch.bfloat16, layout)
    real = linear_step(x, history, rows, **keywords)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, *history, rows, *keywords.values())]
        if device == "cuda":
            fake = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in fake]
        out = linear_step(fake[0], fake[1:3], fake[3], rng=fake[4], samples=fake[5])
        assert (out.shape, out.dtype, out.stride()) == (real.shape, real.dtype, real.stride())
        assert out.device.type == device
        if layout != "expanded":
            assert linear_step_(fake[0], fake[1:3], fake[3], rng=fake[4], samples=fake[5]) is fake[0]


@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(grad: bool) -> None:
    torch._dynamo.reset()
    x, history, rows, keywords = make_case((2, 3, 8, 8), torch.float64)
    leaves = [t.requires_grad_(grad) for t in (x, rows, *history)]

    def step(x: Tensor, rows: Tensor, *history: Tensor) -> Tensor:
        return linear_step(torch.sin(x), history, rows, **keywords)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected, actual = step(*leaves), compiled(*leaves)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    if grad:
        for a, e in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (actual, expected)), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_compile_does_not_recompile_by_step_or_twice_by_size() -> None:
    torch._dynamo.reset()
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    def step(x: Tensor, h: Tensor, row: Tensor, rng: Tensor, samples: Tensor) -> Tensor:
        return linear_step_(x * 1, [h], row, rng=rng, samples=samples)

    compiled = torch.compile(step, fullgraph=True, backend=counting, dynamic=True)
    table, draws = torch.randn(8, 3), torch.tensor([[4, i] for i in range(8)])
    for batch in (5, 6, 9):
        x, h, samples = torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8), torch.arange(batch)
        for row, rng in zip(table, draws, strict=True):
            assert torch.equal(compiled(x, h, row, rng, samples), step(x, h, row, rng, samples))
    assert len(graphs) == 1


def test_compiled_torch_func() -> None:
    torch._dynamo.reset()
    x, history, rows, keywords = make_case((2, 3), torch.float64)

    def tangent(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: linear_step(x, history, rows, **keywords), (x,), (x,))[1]

    torch.testing.assert_close(torch.compile(tangent, fullgraph=True, backend="aot_eager")(x), rows[0] * x)


def test_other_devices_run_the_reference() -> None:
    x, history, rows, _ = make_case((2, 3))
    out = linear_step(*(x.to("meta"), [h.to("meta") for h in history], rows.to("meta")))
    assert out.device.type == "meta"
    assert out.shape == (2, 3)


# ------------------------------------------------------------------------------------------------ bad arguments

X, ROW = torch.zeros(2, 3), torch.zeros(3)
SHAPE = r"coefficients must have shape \(3,\) or \(2, 3\), that is \[a, b_1, s\]"
BAD = [
    *BAD_STATE,
    *BAD_HISTORY,
    (ValueError, "history must hold at most 6 tensors, got 7", {"history": [X] * 7}),
    (ValueError, rf"{SHAPE}, got \(4,\)", {"coefficients": torch.zeros(4)}),
    (ValueError, rf"{SHAPE}, got \(3, 3\)", {"coefficients": torch.zeros(3, 3)}),
    *bad_coefficients(ROW),
    *BAD_NOISE,
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
@pytest.mark.parametrize("function", [linear_step, linear_step_])
def test_bad_arguments(function, error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X.clone(), "history": [X], "coefficients": ROW} | changed
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**arguments)


@native
@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_the_native_library_refuses_what_would_crash_it(error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X, "history": [X], "coefficients": ROW, "noise": None, "rng": None, "samples": None} | changed
    with pytest.raises(error, match=r"^linear_step(: |_cpu\(\): incompatible function arguments)"):
        _library.NATIVE.linear_step_cpu(**arguments)


@native
def test_overlapping_memory_is_refused_in_place() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        linear_step_(torch.zeros(1, 3).expand(2, 3), [], torch.zeros(2))
    buffer = torch.zeros(7)
    with pytest.raises(RuntimeError, match="some elements of the input tensor and the written-to"):
        linear_step_(buffer[:6].view(2, 3), [buffer[1:].view(2, 3)], ROW)

"""langevin_step: every version against the reference, its derivatives, its traces, and what must not change a bit."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from fastscore import _backend, _library, reference
from fastscore._checks import accumulation_dtype
from fastscore.ops import langevin_step, langevin_step_, philox_normal
from fastscore.testing import assert_error_within_budget
from fastscore.testing.inputs import LAYOUTS, as_layout, make_input
from fastscore.testing.langevin_step import assert_parity, make_case
from fastscore.testing.ops import (
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

RAW = torch.ops.fastscore.langevin_step.default
RAW_ = torch.ops.fastscore.langevin_step_.default
# One element a sample, less than a vector, several tiles, channels-last with and without whole groups of four pixels.
SHAPES = ((3,), (2, 3), (3, 2163), (2, 3, 8, 8), (5, 3, 7, 9), (2, 5, 33, 31), (2, 300, 2, 3), (2, 3, 4, 5, 6))

native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


# ------------------------------------------------------------------------------------------------ values


@native
@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_by_shape(shape: tuple[int, ...], dtype: torch.dtype, noise: str) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for per_sample in (False, True):
            for rows in (False, True):
                x, h, coefficients, keywords = make_case(shape, dtype, layout, noise, rows)
                with _backend.backend("cpu"):
                    actual = langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
                assert_parity(actual, x, h, coefficients, keywords, per_sample)


@native
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parity_by_layout(layout: str, dtype: torch.dtype) -> None:
    for noise in ("drawn", "given"):
        for per_sample in (False, True):
            x, h, coefficients, keywords = make_case((4, 3, 6, 10), dtype, layout, noise)
            actual = langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
            assert_parity(actual, x, h, coefficients, keywords, per_sample)


@native
@pytest.mark.parametrize("mean", [1e-3, 1e3])
def test_parity_far_from_zero(mean: float) -> None:
    x, _, coefficients, keywords = make_case((3, 3, 16, 16))
    h = make_input((3, 3, 16, 16), mean=mean, scale=mean, seed=1)
    actual = langevin_step(x, h, coefficients, per_sample=True, **keywords)
    assert_parity(actual, x, h, coefficients, keywords, True)


@native
def test_operands_may_differ_in_layout() -> None:
    x, h, coefficients, keywords = make_case((4, 3, 6, 10), noise="given", rows=True)
    want = langevin_step(x, h, coefficients, **keywords)
    for of_x, of_h, of_z in (("channels_last", "sliced", "permuted"), ("sliced", "channels_last", "contiguous")):
        noise = as_layout(keywords["noise"], of_z)
        moved = langevin_step(as_layout(x, of_x), as_layout(h, of_h), coefficients.t().contiguous().t(), noise=noise)
        assert torch.equal(moved, want)


def test_reference_is_the_published_update() -> None:
    """Algorithms 4 and 5 of Song et al. 2021, written out with loops."""
    x, h, coefficients, keywords = make_case((3, 4, 5), torch.float64, noise="given")
    p, q, tau = coefficients.tolist()
    score, z = p * x + q * h, keywords["noise"]
    norms = [[math.sqrt(float((v[b] ** 2).sum())) for b in range(3)] for v in (z, score)]
    for per_sample in (False, True):
        actual = reference.langevin_step(x, h, coefficients, per_sample=per_sample, **keywords)
        for b in range(3):
            ratio = norms[0][b] / norms[1][b] if per_sample else sum(norms[0]) / sum(norms[1])
            step = tau * ratio**2
            want = x[b] + step * score[b] + math.sqrt(2 * step) * z[b]
            torch.testing.assert_close(actual[b], want, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("chosen", ["auto", "reference"])
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_no_score_no_step(chosen: str, noise: str) -> None:
    x, h, _, keywords = make_case((3, 40), noise=noise)
    coefficients = torch.tensor([0.0, 1.0, 0.1])
    h[1] = 0
    with _backend.backend(chosen):
        each = langevin_step(x, h, coefficients, per_sample=True, **keywords)
        assert torch.equal(each[1], x[1])
        assert not torch.isclose(each[0], x[0]).all()
        assert torch.equal(langevin_step(x, torch.zeros_like(h), coefficients, **keywords), x)
        together = langevin_step(x, h, coefficients, **keywords)
        assert torch.isfinite(together).all()
        assert not torch.isclose(together[1], x[1]).any()  # only the mean has to differ from 0
        assert torch.equal(langevin_step(x, h, torch.tensor([0.0, 1.0, 0.0]), **keywords), x)


@native
def test_nan_stays_in_its_sample() -> None:
    x, h, coefficients, keywords = make_case((3, 40))
    h[1, 7] = float("nan")
    bad = torch.isnan(langevin_step(x, h, coefficients, per_sample=True, **keywords))
    assert bad.any(1).tolist() == [False, True, False]
    assert torch.isnan(langevin_step(x, h, coefficients, **keywords)).all()


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backends_ran(layout: str) -> None:
    x, h, coefficients, keywords = make_case((4, 3, 6, 10), layout=layout)
    assert_one_native_launch("langevin_step", layout, lambda: langevin_step(x, h, coefficients, **keywords))


@native
def test_raw_launcher() -> None:
    x, h, coefficients, keywords = make_case((4, 30))
    launched = _library.NATIVE.langevin_step_cpu(x, h, coefficients, **keywords, per_sample=True)
    assert torch.equal(launched, RAW(x, h, coefficients, None, *keywords.values(), True))
    with pytest.raises(ValueError, match="langevin_step_cpu: x must be a cpu tensor, got one on meta"):
        _library.NATIVE.langevin_step_cpu(x.to("meta"), h, coefficients, **keywords)


# ------------------------------------------------------------------------------------------------ to the last bit


@native
@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 3, 8, 8), (12, 5), (12, 3, 33, 31)])
def test_bits_do_not_depend_on_batch_threads_or_format(
    shape: tuple[int, ...], dtype: torch.dtype, noise: str, threads
) -> None:
    x, h, coefficients, keywords = make_case(shape, dtype, noise=noise)

    def step(rows: Rows, layout: str, per_sample: bool = True) -> Tensor:
        some = {
            k: v if k == "rng" else as_layout(v[rows], layout if k == "noise" else "contiguous")
            for k, v in keywords.items()
        }
        return langevin_step(
            as_layout(x[rows], layout), as_layout(h[rows], layout), coefficients, per_sample=per_sample, **some
        )

    assert_bits_hold_by_batch(step, assert_bits_hold_by_threads_and_format(step, shape, threads))
    whole_batch = partial(step, per_sample=False)
    want = assert_bits_hold_by_threads_and_format(whole_batch, shape, threads)
    assert not torch.equal(want[:1], whole_batch(slice(0, 1), "contiguous"))  # as published


@native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "empty"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_is_out_of_place(layout: str, dtype: torch.dtype) -> None:
    x, h, coefficients, keywords = make_case((3, 3, 6, 7), dtype, layout)
    want = langevin_step(x, h, coefficients, **keywords)
    state = as_layout(x.clone(), layout)
    address = state.data_ptr()
    assert langevin_step_(state, h, coefficients, **keywords) is state
    assert state.data_ptr() == address
    assert torch.equal(state, want)


@native
def test_in_place_with_the_state_as_network_output() -> None:
    x, _, coefficients, keywords = make_case((3, 40))
    want = langevin_step(x, x, coefficients, **keywords)
    assert torch.equal(langevin_step_(x, x, coefficients, **keywords), want)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawn_is_the_noise_function(dtype: torch.dtype) -> None:
    for shape in ((3, 3, 32, 32), (3, 2, 5, 7)):
        x, h, coefficients, keywords = make_case(shape, dtype)
        z = philox_normal(x.shape, RNG, keywords["samples"], dtype)
        drawn = langevin_step(x, h, coefficients, per_sample=True, **keywords)
        given = langevin_step(x, h, coefficients, per_sample=True, noise=z)
        # The norm of drawn noise is summed from its radii: another rounding of the same number.
        torch.testing.assert_close(drawn, given, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        (*arguments, keywords | {"per_sample": per_sample})
        for shape, layout in (((3, 2163), "contiguous"), ((2, 3, 7, 9), "channels_last"))
        for dtype in DTYPES
        for noise in ("drawn", "given")
        for *arguments, keywords in [make_case(shape, dtype, layout, noise, rows=True)]
        for per_sample in (False, True)
    ]
    results = run_op_on(isa, "langevin_step", cases, tmp_path)
    for (x, h, coefficients, keywords), actual in zip(cases, results, strict=True):
        assert_parity(actual, x, h, coefficients, keywords, keywords.pop("per_sample"))


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_gradcheck(noise: str, rows: bool, per_sample: bool, chosen: str) -> None:
    x, h, coefficients, keywords = make_case((2, 2, 3), torch.float64, noise=noise, rows=rows)
    inputs = [t.requires_grad_() for t in (x, h, coefficients, *([keywords["noise"]] if noise == "given" else []))]

    def call(x: Tensor, h: Tensor, coefficients: Tensor, z: Tensor | None = None) -> Tensor:
        given = {"noise": z} if noise == "given" else keywords
        return langevin_step(x, h, coefficients, per_sample=per_sample, **given)

    with _backend.backend(chosen):
        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=chosen == "auto")
        assert torch.autograd.gradgradcheck(call, inputs)


@native
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])  # gradcheck is stricter in float64
def test_gradients_within_budget(dtype: torch.dtype, per_sample: bool) -> None:
    def gradients(function, dtype: torch.dtype, low: torch.dtype) -> list[Tensor]:
        x, h, coefficients, keywords = make_case((3, 3, 8, 9), torch.float64, "channels_last", "given", rows=True)
        leaves = [x, h, keywords["noise"]]
        leaves = [t.to(low).to(dtype).requires_grad_() for t in leaves]
        rows = coefficients.to(accumulation_dtype(low)).to(accumulation_dtype(dtype)).requires_grad_()
        out = function(leaves[0], leaves[1], rows, noise=leaves[2], per_sample=per_sample)
        weights = make_input((3, 3, 8, 9), dtype=torch.float64, seed=5).to(low).to(dtype)
        return list(torch.autograd.grad(out, [*leaves, rows], weights))

    oracle = gradients(reference.langevin_step, torch.float64, dtype)
    plain = gradients(reference.langevin_step, dtype, dtype)
    fused = gradients(langevin_step, dtype, dtype)
    for name, actual, exact, low in zip(("x", "h", "noise", "coefficients"), fused, oracle, plain, strict=True):
        assert_error_within_budget(actual, exact, low, f"gradient of {name}", factor=3)


@pytest.mark.parametrize("again", ["", "h", "noise"])
@pytest.mark.parametrize("chosen", ["auto", "reference"])
def test_in_place_with_gradients(again: str, chosen: str) -> None:
    """Also where the state is another argument, too."""
    x, h, coefficients, keywords = make_case((3, 40), torch.float64, noise="given")
    leaves = [t.requires_grad_() for t in (x, h, coefficients, *keywords.values())]

    def result(function) -> tuple[Tensor, ...]:
        out = x * 1
        for _ in range(2):
            given = {"h": h, **keywords} | ({again: out} if again else {})
            out = function(out, coefficients=coefficients, **given)
        return out, *torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True, allow_unused=True)

    with _backend.backend(chosen):
        actual, want = result(langevin_step_), result(langevin_step)
    assert torch.equal(actual[0], want[0])
    for one, other in zip(actual[1:], want[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradient_where_there_is_no_score(per_sample: bool) -> None:
    x, _, _, keywords = make_case((3, 40), torch.float64)
    coefficients = torch.tensor([0.0, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    h = torch.zeros_like(x, requires_grad=True)
    out = langevin_step(x.requires_grad_(), h, coefficients, per_sample=per_sample, **keywords)
    gradients = torch.autograd.grad(out.sum(), (x, h, coefficients))
    assert torch.equal(gradients[0], torch.ones_like(x))
    for gradient in gradients[1:]:
        assert not gradient.any()


@native
@pytest.mark.parametrize("per_sample", [False, True])
def test_functorch(per_sample: bool) -> None:
    x, h, coefficients, keywords = make_case((3, 2, 4), torch.float64, rows=True)
    many, dx, dh = (make_input((5, 3, 2, 4), dtype=torch.float64, seed=seed) for seed in (2, 3, 4))
    tables = coefficients * make_input((5, 1, 1), dtype=torch.float64, mean=1.0, scale=0.1, seed=5)
    samples = torch.arange(15).view(5, 3)

    def step(x: Tensor, h: Tensor = h, c: Tensor = coefficients, s: Tensor = keywords["samples"]) -> Tensor:
        return langevin_step(x, h, c, rng=RNG, samples=s, per_sample=per_sample)

    _library.NATIVE.reset_launches()
    mapped = torch.func.vmap(step)(many)
    assert sum(_library.NATIVE.launches().values()) == (1 if per_sample else 5)
    assert torch.equal(mapped, torch.stack([step(x) for x in many]))
    last = torch.func.vmap(step, in_dims=(3, None, 0, 0), out_dims=3)(many.movedim(0, 3), h, tables, samples)
    want = torch.stack([step(m, h, c, s) for m, c, s in zip(many, tables, samples, strict=True)])
    assert torch.equal(last.movedim(3, 0), want)
    shared = torch.func.vmap(lambda c: step(x, h, c))(tables[:, 0])
    assert torch.equal(shared, torch.stack([step(x, h, c) for c in tables[:, 0]]))

    _, tangent = torch.func.jvp(step, (x, h), (dx[0], dh[0]))
    _, pull = torch.func.vjp(step, x, h)
    weights = dx[1]
    gx, gh = pull(weights)
    torch.testing.assert_close((tangent * weights).sum(), (gx * dx[0]).sum() + (gh * dh[0]).sum())
    jacobian = torch.func.jacrev(step)(x).flatten(3).flatten(0, 2)
    torch.testing.assert_close(jacobian, torch.func.jacfwd(step)(x).flatten(3).flatten(0, 2))
    with pytest.raises(ValueError, match="rng must not be mapped by vmap; map samples instead"):
        torch.func.vmap(lambda r: langevin_step(x, h, coefficients, rng=r, samples=samples[0]))(RNG.expand(2, 2))


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "expanded"])
@pytest.mark.parametrize("noise", ["drawn", "given"])
def test_opcheck(layout: str, noise: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, h, coefficients, keywords = make_case((3, 2, 4, 5), dtype, layout, noise)
        rest = (keywords.get("noise"), keywords.get("rng"), keywords.get("samples"))
        for per_sample in (False, True):
            torch.library.opcheck(RAW, (x, h, coefficients, *rest, per_sample))
            if layout != "expanded":
                torch.library.opcheck(RAW_, (as_layout(x.clone(), layout), h, coefficients, *rest, per_sample))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced"])
def test_fake(layout: str, device: str) -> None:
    x, h, coefficients, keywords = make_case((3, 2, 4, 5), layout=layout)
    real = langevin_step(x, h, coefficients, **keywords)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, h, coefficients, *drawn = (mode.from_tensor(t) for t in (x, h, coefficients, *keywords.values()))
        if device == "cuda":
            x, h, coefficients, *drawn = (t.to("cuda") for t in (x, h, coefficients, *drawn))
        named = dict(zip(("rng", "samples"), drawn, strict=True))
        out = langevin_step(x, h, coefficients, **named)
        assert (out.shape, out.dtype, out.device.type) == (real.shape, real.dtype, device)
        if device == "cpu" or layout != "sliced":  # moving a fake tensor to another device may change its strides
            assert out.stride() == real.stride()
        assert langevin_step_(x, h, coefficients, **named) is x


@native
@pytest.mark.parametrize("per_sample", [False, True])
def test_compile(per_sample: bool) -> None:
    x, h, coefficients, keywords = make_case((3, 2, 4, 5))

    def loop(x: Tensor, h: Tensor, table: Tensor, rng: Tensor) -> Tensor:
        for i in range(3):
            x = langevin_step(x, h, table[i], rng=rng[i], samples=keywords["samples"], per_sample=per_sample)
            langevin_step_(x, h, table[i], rng=rng[i], samples=keywords["samples"], per_sample=per_sample)
        return x

    table, counters = coefficients.expand(3, 3).contiguous(), RNG + torch.tensor([[0, 0], [0, 1], [0, 2]])
    assert torch.equal(torch.compile(loop, fullgraph=True)(x, h, table, counters), loop(x, h, table, counters))

    def loss(x: Tensor, h: Tensor, coefficients: Tensor) -> Tensor:
        return langevin_step(x, h, coefficients, per_sample=per_sample, **keywords).square().sum()

    leaves = [t.clone().requires_grad_() for t in (x, h, coefficients)]
    eager = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    torch.testing.assert_close(compiled, eager)


# ------------------------------------------------------------------------------------------------ bad input

X, ROW = torch.zeros(2, 3), torch.zeros(3)
DRAWN = {"rng": RNG, "samples": torch.arange(2)}
BAD = [
    *BAD_STATE,
    *BAD_OUTPUT,
    *bad_coefficients(ROW),
    (
        ValueError,
        r"coefficients must have shape \(3,\) or \(2, 3\), that is \[p, q, tau\], got \(2,\)",
        {"coefficients": torch.zeros(2)},
    ),
    (ValueError, "noise must be given, or rng and samples, got None", {"rng": None, "samples": None}),
    (ValueError, "noise must stand alone: either noise, or rng and samples, got both", {"noise": X}),
    (ValueError, r"noise must have the shape of x", {"noise": torch.zeros(3), "rng": None, "samples": None}),
    (ValueError, "rng must be given with samples, got None", {"rng": None}),
    (ValueError, r"samples must have shape \(2,\), the index of each row, got \(4,\)", {"samples": torch.arange(4)}),
    (TypeError, r"rng must be an int64 tensor, \(seed, draw\), got torch.int32", {"rng": RNG.int()}),
    (TypeError, "per_sample must be True or False, got 'batch'", {"per_sample": "batch"}),
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
@pytest.mark.parametrize("function", [langevin_step, langevin_step_])
def test_bad_arguments(function, error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X.clone(), "h": X, "coefficients": ROW} | DRAWN | changed
    with pytest.raises(error, match=f"^{function.__name__}: {message}"):
        function(**arguments)


@native
@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_the_native_library_refuses_what_would_crash_it(error: type[Exception], message: str, changed: dict) -> None:
    arguments = {"x": X, "h": X, "coefficients": ROW} | DRAWN | changed
    with pytest.raises(error, match=r"^langevin_step(: |_cpu\(\): incompatible function arguments)"):
        _library.NATIVE.langevin_step_cpu(**arguments)


@native
def test_overlapping_memory_is_refused_in_place() -> None:
    with pytest.raises(RuntimeError, match="single memory location"):
        langevin_step_(torch.zeros(1, 3).expand(2, 3), X, ROW, **DRAWN)
    buffer = torch.zeros(7)
    with pytest.raises(RuntimeError, match=r"partially overlap|some elements of the input tensor and the written-to"):
        langevin_step_(buffer[:6].view(2, 3), buffer[1:].view(2, 3), ROW, **DRAWN)

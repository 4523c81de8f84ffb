"""hutchinson: what it estimates, its probes, what must not change a bit, derivatives, traces, bad arguments."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from fastscore import _backend, _library, reference
from fastscore._checks import accumulation_dtype
from fastscore.ops import hutchinson, hutchinson_probe, philox_normal, philox_rademacher
from fastscore.testing import assert_error_within_budget, ulp_distance
from fastscore.testing.inputs import LAYOUTS, make_input
from fastscore.testing.ops import DTYPES, RNG, assert_one_native_launch, run_on

RAW, RAW_PROBE = torch.ops.fastscore.hutchinson.default, torch.ops.fastscore.hutchinson_probe.default
KINDS = {"rademacher": philox_rademacher, "gaussian": philox_normal}
native = pytest.mark.skipif(_library.NATIVE is None, reason="the native library is not built")


def make_case(
    shape: tuple[int, ...] = (3, 2, 4, 5), dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> tuple[Tensor, Tensor, Tensor]:
    """Products with the Jacobian (K, B, ...), rng and samples."""
    return make_input(shape, layout, dtype=dtype), RNG, torch.arange(shape[1]) * 3 + 2**33


# ------------------------------------------------------------------------------------------------ what it estimates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_probes_are_those_of_their_draws(dtype: torch.dtype, kind: str) -> None:
    shape, samples = (2, 3, 5, 7), torch.tensor([4, 2**40])
    for channels_last in (False, True):
        eps = hutchinson_probe(shape, RNG, samples, 3, kind, dtype, channels_last=channels_last)
        format = torch.channels_last if channels_last else torch.contiguous_format
        assert eps.flatten(0, 1).is_contiguous(memory_format=format)
        for k in range(3):
            assert torch.equal(eps[k], KINDS[kind](shape, RNG + torch.tensor([0, k]), samples, dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_formula(dtype: torch.dtype, kind: str) -> None:
    jvp, rng, samples = make_case((3, 2, 4, 5), dtype)
    estimate, products = hutchinson(jvp, rng, samples, kind)
    accurate = torch.float64 if dtype == torch.float64 else torch.float32
    assert (estimate.dtype, products.dtype) == (accurate, accurate)
    eps = hutchinson_probe((2, 4, 5), rng, samples, 3, kind, torch.float64)
    exact = (eps * jvp.double()).sum((2, 3))
    size = (eps * jvp).abs().sum((2, 3)).amax()  # a product is within a few units in the last place of its normal
    torch.testing.assert_close(products.double(), exact, rtol=0, atol=float(8 * torch.finfo(accurate).eps * size))
    torch.testing.assert_close(
        estimate.double(), exact.mean(0), rtol=0, atol=float(8 * torch.finfo(accurate).eps * size)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signs_are_exact_on_a_diagonal(dtype: torch.dtype) -> None:
    """Each probe gives the trace, to the last bit where the sum is exact."""
    samples = torch.arange(2)
    eps = hutchinson_probe((2, 3, 8, 8), RNG, samples, 4, dtype=dtype)
    diagonal = make_input((2, 3, 8, 8), dtype=dtype).mul(64).round()
    estimate, products = hutchinson(diagonal * eps, RNG, samples)
    assert torch.equal(products, diagonal.sum((1, 2, 3)).expand(4, 2))
    assert torch.equal(estimate, products[0])


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_standard_error_on_a_known_matrix(kind: str) -> None:
    """Variance of a product: 2 sum over i != j of S_ij^2 for signs, 2 |S|^2 for normals, S the symmetric part of J."""
    probes, batch, size = 4, 2000, 6
    matrix = make_input((size, size), dtype=torch.float64, seed=3)
    symmetric = (matrix + matrix.T) / 2
    squares = symmetric.square().sum() - (symmetric.diagonal().square().sum() if kind == "rademacher" else 0)
    deviation = math.sqrt(2 * squares)
    samples = torch.arange(batch)
    eps = hutchinson_probe((batch, size), RNG, samples, probes, kind, torch.float64)
    estimate, products = hutchinson(eps @ matrix.T, RNG, samples, kind)
    count = products.numel()
    assert abs(products.mean() - matrix.trace()) < 4 * deviation / math.sqrt(count)
    # the variance of a sample variance: products have a kurtosis below 15, that of a squared normal
    assert abs(products.std() / deviation - 1) < 4 * math.sqrt(14 / count) / 2
    torch.testing.assert_close(estimate.std().item(), deviation / math.sqrt(probes), rtol=0.1, atol=0)
    torch.testing.assert_close(estimate, products.mean(0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_layouts(layout: str) -> None:
    jvp = make_input((6, 3, 4, 5), layout).unflatten(0, (2, 3))
    samples = torch.arange(3)
    for actual, expected in zip(hutchinson(jvp, RNG, samples), hutchinson(jvp.contiguous(), RNG, samples), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_zero_sizes() -> None:
    for shape in ((2, 0, 3), (2, 3, 0), (1, 3, 2, 0)):
        estimate, products = hutchinson(*make_case(shape))
        assert torch.equal(estimate, torch.zeros(shape[1]))
        assert torch.equal(products, torch.zeros(shape[:2]))
        assert hutchinson_probe(shape[1:], RNG, torch.arange(shape[1]), 2).shape == (2, *shape[1:])


# ------------------------------------------------------------------------------------------------ kernels

# One element, whole words, broken ones, several tiles, more channels than pixels.
SHAPES = [(3, 1, 1, 1), (2, 4, 4, 8), (2, 3, 7, 9), (2, 3, 33, 31), (2, 300, 3, 3)]
LAST_DRAWS = torch.tensor([2**40 + 17, 2**32 - 2])  # the third probe is draw 0


def assert_parity(actual: tuple[Tensor, Tensor], jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> None:
    dtype = accumulation_dtype(jvp.dtype)
    # Products are held to the probes of the kernel, and these to the specification, so neither hides the other.
    eps = hutchinson_probe(jvp.shape[1:], rng, samples, jvp.shape[0], kind, dtype)
    wide = (eps.double() * jvp.double()).flatten(2)
    sums = wide.sum(2), (eps * jvp.to(dtype)).to(torch.float64).flatten(2).sum(2)
    exact, plain = ((s.mean(0), s) for s in sums)
    for name, a, e, p in zip(("estimate", "products"), actual, exact, plain, strict=True):
        assert a.dtype == dtype
        if dtype == torch.float64:  # summed in another order
            assert ((a - e).abs() <= 16 * 2.0**-53 * wide.abs().sum(2).amax()).all(), name
        else:
            assert_error_within_budget(a, e, p.float(), name)


@native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    for layout in ("contiguous", "channels_last"):
        for mean in (0.0, 1e3):
            jvp = make_input((3 * shape[0], *shape[1:]), layout, dtype=dtype, mean=mean).unflatten(0, (3, shape[0]))
            samples = torch.arange(shape[0]) * 3 + 2**33
            with _backend.backend("cpu"):
                actual = hutchinson(jvp, LAST_DRAWS, samples, kind)
            assert_parity(actual, jvp, LAST_DRAWS, samples, kind)


@native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probes_are_the_specification(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    real = accumulation_dtype(dtype)
    samples, weight = torch.arange(shape[0]) * 3 + 2**33, make_input((3, shape[0]), dtype=real)
    exact = reference.hutchinson_probe(shape, LAST_DRAWS, samples, 3, kind, torch.float64)
    for last in (False, True):
        with _backend.backend("cpu"):
            eps = hutchinson_probe(shape, LAST_DRAWS, samples, 3, kind, dtype, channels_last=last)
        want = exact.to(dtype)
        assert ulp_distance(eps, want).max() <= (4 if kind == "gaussian" else 0)
        weighted = RAW_PROBE(LAST_DRAWS, samples, weight, 3, shape, dtype, kind, last)
        wide = hutchinson_probe(shape, LAST_DRAWS, samples, 3, kind, real)
        assert torch.equal(weighted, (weight[..., None, None, None] * wide).to(dtype))


@native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_on_nothing_else(shape: tuple[int, ...], kind: str, threads) -> None:
    """Not on the format, the alignment, the batch, the other probes or the threads."""
    jvp = make_input((9 * shape[0], *shape[1:])).unflatten(0, (9, shape[0]))
    samples = torch.arange(shape[0]) * 3 + 2**33
    with threads(1):
        estimate, products = hutchinson(jvp, RNG, samples, kind)
        eps = hutchinson_probe(shape, RNG, samples, 9, kind)

    def assert_same(actual: tuple[Tensor, Tensor], b: slice = slice(None)) -> None:
        assert torch.equal(actual[0], estimate[b])
        assert torch.equal(actual[1], products[:, b])

    with threads(2):
        assert_same(hutchinson(jvp, RNG, samples, kind))
        assert torch.equal(hutchinson_probe(shape, RNG, samples, 9, kind), eps)
    assert_same(hutchinson(jvp.movedim(2, -1).contiguous().movedim(-1, 2), RNG, samples, kind))
    assert torch.equal(hutchinson_probe(shape, RNG, samples, 9, kind, channels_last=True), eps)
    assert_same(hutchinson(torch.empty(jvp.numel() + 1)[1:].view(jvp.shape).copy_(jvp), RNG, samples, kind))
    for b in range(shape[0]):
        one = slice(b, b + 1)
        assert_same(hutchinson(jvp[:, one], RNG, samples[one], kind), one)
        assert torch.equal(hutchinson_probe((1, *shape[1:]), RNG, samples[one], 9, kind), eps[:, one])
    for k in range(9):
        alone = hutchinson(jvp[k : k + 1], RNG + torch.tensor([0, k]), samples, kind)[1]
        assert torch.equal(alone[0], products[k])


@native
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_shows_in_its_sample(kind: str) -> None:
    jvp, rng, samples = make_case((2, 3, 37))
    jvp[1, 1, 36] = math.nan
    estimate, products = hutchinson(jvp, rng, samples, kind)
    assert torch.isfinite(estimate).tolist() == [True, False, True]
    assert torch.isfinite(products).tolist() == [[True] * 3, [True, False, True]]


@native
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "expanded"])
def test_backends_ran(layout: str) -> None:
    jvp = make_input((6, 3, 4, 5), layout)
    jvp = jvp.unflatten(0, (2, 3)) if layout != "empty" else jvp[None]
    samples = torch.arange(jvp.shape[1])
    assert_one_native_launch("hutchinson", layout, lambda: hutchinson(jvp, RNG, samples))
    assert_one_native_launch("hutchinson_probe", layout, lambda: hutchinson_probe(jvp.shape[1:], RNG, samples))


@native
def test_raw_launchers() -> None:
    jvp, rng, samples = make_case()
    for actual, want in zip(
        _library.NATIVE.hutchinson_cpu(jvp, rng, samples, "gaussian"),
        hutchinson(jvp, rng, samples, "gaussian"),
        strict=True,
    ):
        assert torch.equal(actual, want)
    eps = _library.NATIVE.hutchinson_probe_cpu(rng, samples, None, 3, [2, 4, 5], torch.bfloat16, "gaussian", False)
    assert torch.equal(eps, hutchinson_probe((2, 4, 5), rng, samples, 3, "gaussian", torch.bfloat16))
    with pytest.raises(ValueError, match="hutchinson_cpu: jvp must be a cpu tensor, got one on meta"):
        _library.NATIVE.hutchinson_cpu(jvp.to("meta"), rng, samples, "gaussian")


@native
def test_every_instruction_set(isa: str, tmp_path) -> None:
    cases = [
        (make_input((6, *shape[1:]), layout, dtype=dtype).unflatten(0, (3, 2)), LAST_DRAWS, torch.arange(2), kind)
        for shape in SHAPES[1:4]
        for layout in ("contiguous", "channels_last")
        for dtype in DTYPES
        for kind in KINDS
    ]
    program = """
results = []
for jvp, rng, samples, kind in cases:
    last = not jvp[0, 0].is_contiguous()
    eps = fastscore.ops.hutchinson_probe(jvp.shape[1:], rng, samples, 3, kind, jvp.dtype, channels_last=last)
    results.append((fastscore.ops.hutchinson(jvp, rng, samples, kind), eps))
"""
    results, launches = run_on(isa, program, cases, tmp_path)
    assert launches == {f"hutchinson.{isa}": len(cases), f"hutchinson_probe.{isa}": len(cases)}
    for (jvp, rng, samples, kind), (products, eps) in zip(cases, results, strict=True):
        want = reference.hutchinson_probe(jvp.shape[1:], rng, samples, 3, kind, jvp.dtype)
        assert ulp_distance(eps, want).max() <= (4 if kind == "gaussian" else 0)
        if kind == "rademacher" or jvp.dtype in (torch.float32, torch.float64):
            exact = (eps.double() * jvp.double()).flatten(2).sum(2)
            size = (eps.double() * jvp.double()).flatten(2).abs().sum(2)
            assert ((products[1].double() - exact).abs() <= 8 * torch.finfo(products[1].dtype).eps * size).all()


# ------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    jvp, rng, samples = make_case((3, 2, 2, 3), torch.float64)
    jvp.requires_grad_()
    call = lambda v: hutchinson(v, rng, samples, kind)  # noqa: E731
    assert torch.autograd.gradcheck(call, jvp, check_forward_ad=True, check_batched_grad=True)
    square = lambda v: hutchinson(v.square(), rng, samples, kind)  # noqa: E731
    assert torch.autograd.gradgradcheck(square, jvp, check_fwd_over_rev=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_probe(dtype: torch.dtype, layout: str) -> None:
    jvp = make_input((6, 3, 4, 5), layout, dtype=dtype).unflatten(0, (2, 3)).requires_grad_()
    samples = torch.arange(3)
    estimate, _ = hutchinson(jvp, RNG, samples, "gaussian")
    (grad,) = torch.autograd.grad(estimate.sum(), jvp)
    eps = hutchinson_probe(jvp.shape[1:], RNG, samples, 2, "gaussian", estimate.dtype)
    assert torch.equal(grad, (eps / 2).to(dtype))
    assert grad[0].stride() == jvp[0].stride()


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4)], ids=str)
def test_gradients_of_samples_with_few_dimensions(shape: tuple[int, ...]) -> None:
    """A sample may be one number."""
    jvp, rng, samples = make_case(shape, torch.float64)
    assert torch.autograd.gradcheck(lambda v: hutchinson(v, rng, samples), jvp.requires_grad_(), check_forward_ad=True)
    eps = hutchinson_probe(shape[1:], rng, samples, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad(hutchinson(jvp, rng, samples)[0].sum(), jvp)
    assert torch.equal(grad, eps / 3)


def test_dual_numbers_outside_torch_func() -> None:
    jvp, rng, samples = make_case()
    tangent = make_input(tuple(jvp.shape), seed=3)
    with forward_ad.dual_level():
        out = hutchinson(forward_ad.make_dual(jvp, tangent), rng, samples)
        for moved, want in zip(out, hutchinson(tangent, rng, samples), strict=True):
            assert torch.equal(forward_ad.unpack_dual(moved).tangent, want)


def test_torch_func() -> None:
    jvp, rng, samples = make_case((2, 2, 3), torch.float64)

    def of(function):
        return lambda v: function(v.sin(), rng, samples)[1].square()

    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(of(hutchinson))(jvp), transform(of(reference.hutchinson))(jvp))
    several = make_input((2, 5, 2, 3), dtype=torch.float64, seed=4)
    for mapped in ((1, None), (1, 0), (None, 0)):
        values = several if mapped[0] is not None else several[:, 0]
        index = samples + torch.arange(5)[:, None] if mapped[1] is not None else samples
        actual = torch.func.vmap(lambda v, s: hutchinson(v, rng, s), in_dims=mapped)(values, index)
        for i in range(5):
            want = hutchinson(
                values[:, i] if mapped[0] is not None else values, rng, index[i] if mapped[1] is not None else index
            )
            for a, w in zip(actual, want, strict=True):
                torch.testing.assert_close(a[i], w, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match="rng must not be mapped by vmap; map samples instead"):
        torch.func.vmap(lambda rng: hutchinson(jvp, rng, samples))(rng.expand(3, 2))


# ------------------------------------------------------------------------------------------------ tracing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(kind: str, channels_last: bool) -> None:
    jvp, rng, samples = make_case((3, 2, 2, 4, 5))
    torch.library.opcheck(RAW, (jvp, rng, samples, kind))
    for weight in (None, torch.randn(3, 2)):
        torch.library.opcheck(RAW_PROBE, (rng, samples, weight, 3, [2, 2, 4, 5], torch.bfloat16, kind, channels_last))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fakes(device: str) -> None:
    with FakeTensorMode():
        jvp = torch.empty(3, 2, 4, dtype=torch.bfloat16, device=device)
        rng, samples = (torch.empty(2, dtype=torch.int64, device=device) for _ in range(2))
        estimate, products = hutchinson(jvp, rng, samples)
        assert (estimate.shape, products.shape) == ((2,), (3, 2))
        assert {estimate.dtype, products.dtype} == {torch.float32}
        eps = hutchinson_probe((2, 3, 4), rng, samples, 5, channels_last=True)
        assert eps.shape == (5, 2, 3, 4)
        assert eps.stride() == (24, 12, 1, 3)
        assert {t.device.type for t in (estimate, products, eps)} == {device}


@pytest.mark.parametrize("grad", [False, True])
def test_compile_fullgraph(grad: bool) -> None:
    torch._dynamo.reset()
    jvp, rng, samples = make_case((3, 2, 4, 5), torch.float64)
    jvp.requires_grad_(grad)

    def step(jvp: Tensor, rng: Tensor, samples: Tensor) -> Tensor:
        eps = hutchinson_probe(jvp.shape[1:], rng, samples, jvp.shape[0], dtype=jvp.dtype)
        estimate, products = hutchinson(torch.sin(jvp) * eps, rng, samples)
        return estimate.sum() + products.square().sum()

    expected, actual = (
        step(jvp, rng, samples),
        torch.compile(step, fullgraph=True, backend="aot_eager")(jvp, rng, samples),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)
    if grad:
        a, e = (torch.autograd.grad(out, jvp)[0] for out in (actual, expected))
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------ bad arguments

X, SAMPLES = torch.zeros(2, 3, 4), torch.arange(3)
SHARED = [
    (TypeError, r"rng must be an int64 tensor, \(seed, draw\), got tuple", {"rng": (0, 1)}),
    (TypeError, "rng must be an int64 tensor, .* got torch.int32", {"rng": RNG.int()}),
    (ValueError, r"samples must have shape \(3,\), the index of each row, got \(2,\)", {"samples": SAMPLES[:2]}),
    (ValueError, "samples must be on the device of x, cpu, got meta", {"samples": SAMPLES.to("meta")}),
    (ValueError, "kind must be 'rademacher' or 'gaussian', got 'normal'", {"kind": "normal"}),
]
BAD = [
    (TypeError, "jvp must be a tensor, got list", {"jvp": [1.0]}),
    (TypeError, "jvp must be float32, float64, bfloat16 or float16, got torch.int64", {"jvp": X.long()}),
    (ValueError, r"jvp must have shape \(K, B, ...\) with K >= 1, got \(4,\)", {"jvp": X[0, 0]}),
    (ValueError, r"jvp must have shape \(K, B, ...\) with K >= 1, got \(0, 3, 4\)", {"jvp": X[:0]}),
    *SHARED,
]
BAD_PROBE = [
    (ValueError, r"shape must be \(B, ...\), got \(\)", {"shape": ()}),
    (TypeError, "dtype must be float32, .* got torch.int64", {"dtype": torch.int64}),
    (TypeError, "probes must be an int, got float", {"probes": 2.0}),
    (ValueError, "probes must be at least 1, got 0", {"probes": 0}),
    (
        ValueError,
        r"shape must be \(B, C, ...\) where channels_last is asked for, got \(3, 4\)",
        {"channels_last": True},
    ),
    *SHARED,
]


@pytest.mark.parametrize(("error", "message", "changed"), BAD, ids=[message[:40] for _, message, _ in BAD])
def test_bad_arguments(error: type[Exception], message: str, changed: dict) -> None:
    with pytest.raises(error, match=f"^hutchinson: {message}"):
        hutchinson(**{"jvp": X, "rng": RNG, "samples": SAMPLES} | changed)


@pytest.mark.parametrize(("error", "message", "changed"), BAD_PROBE, ids=[message[:40] for _, message, _ in BAD_PROBE])
def test_bad_arguments_of_the_probe(error: type[Exception], message: str, changed: dict) -> None:
    with pytest.raises(error, match=f"^hutchinson_probe: {message}"):
        hutchinson_probe(**{"shape": (3, 4), "rng": RNG, "samples": SAMPLES} | changed)

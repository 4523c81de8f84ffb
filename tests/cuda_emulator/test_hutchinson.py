"""csrc/cuda/hutchinson.cu against the reference, in the emulator."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.testing import assert_error_within_budget, ulp_distance
from fastscore.testing.inputs import make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = ("rademacher", "gaussian")
LAYOUTS = ("contiguous", "channels_last")
RNG = torch.tensor([2**40 + 17, 2**32 - 2])  # the third probe is draw 0
TILE = 2048
# One element, whole words, broken ones, several tiles.
SHAPES = [(3, 1, 1, 1), (2, 4, 4, 8), (2, 3, 7, 9), (2, 3, 33, 31)]


@pytest.fixture(scope="module")
def kernel(compile_cuda):
    return compile_cuda("csrc/cuda/hutchinson.cu", "tests/cuda_emulator/hutchinson.cpp")


@pytest.fixture(scope="module")
def run(kernel) -> Callable[..., tuple[Tensor, Tensor]]:
    """hutchinson of fastscore.ops by the kernel."""

    class Args(ctypes.Structure):
        _fields_ = (
            *(("jvp", ctypes.c_void_p), ("probe_stride", ctypes.c_int64), ("sample_stride", ctypes.c_int64)),
            *((name, ctypes.c_void_p) for name in ("estimate", "products", "scratch", "rng", "samples")),
            ("signs", ctypes.c_bool),
            *((name, ctypes.c_int64) for name in ("probes", "batch", "pixels", "channels")),
            ("dtype", ctypes.c_int32),
        )

    def call(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        probes, batch = jvp.shape[:2]
        dtype, size = accumulation_dtype(jvp.dtype), jvp[0, 0].numel()
        estimate, products = torch.empty(batch, dtype=dtype), torch.empty(probes, batch, dtype=dtype)  # poisoned
        scratch = torch.empty(probes * batch * -(-size // TILE), dtype=torch.float64)
        channels = 1 if jvp[0, 0].is_contiguous() else jvp.shape[2]
        args = Args(
            jvp=jvp.data_ptr(),
            probe_stride=jvp.stride(0),
            sample_stride=jvp.stride(1),
            estimate=estimate.data_ptr(),
            products=products.data_ptr(),
            scratch=scratch.data_ptr(),
            rng=rng.data_ptr(),
            samples=samples.data_ptr(),
            signs=kind == "rademacher",
            probes=probes,
            batch=batch,
            pixels=size // channels,
            channels=channels,
            dtype=kernel.DTYPES[jvp.dtype],
        )
        kernel.hutchinson(args)
        return estimate, products

    return call


@pytest.fixture(scope="module")
def probe(kernel) -> Callable[..., Tensor]:
    """hutchinson_probe of fastscore.ops by the kernel, and a factor for each row."""

    class Args(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_void_p) for name in ("out", "weight", "rng", "samples")),
            ("signs", ctypes.c_bool),
            *((name, ctypes.c_int64) for name in ("probes", "batch", "pixels", "channels")),
            ("dtype", ctypes.c_int32),
        )

    def call(
        shape: tuple[int, ...],
        samples: Tensor,
        probes: int,
        kind: str,
        dtype: torch.dtype,
        layout: str,
        weight: Tensor | None = None,
    ) -> Tensor:
        batch, channels, height, width = shape
        if layout == "channels_last":
            out = torch.empty(probes, batch, height, width, channels, dtype=dtype).movedim(-1, 2)
        else:
            out = torch.empty(probes, *shape, dtype=dtype)
            channels = 1
        args = Args(
            out=out.data_ptr(),
            weight=None if weight is None else weight.data_ptr(),
            rng=RNG.data_ptr(),
            samples=samples.data_ptr(),
            signs=kind == "rademacher",
            probes=probes,
            batch=batch,
            pixels=out[0, 0].numel() // channels,
            channels=channels,
            dtype=kernel.DTYPES[dtype],
        )
        kernel.hutchinson_probe(args)
        return out

    return call


def make_case(
    shape: tuple[int, ...], layout: str = "contiguous", probes: int = 3, **options: Any
) -> tuple[Tensor, Tensor]:
    """Products with the Jacobian (K, B, ...), and samples."""
    jvp = make_input((probes * shape[0], *shape[1:]), layout, **options).unflatten(0, (probes, shape[0]))
    return jvp, torch.arange(shape[0]) * 3 + 2**33


def assert_parity(actual: tuple[Tensor, Tensor], jvp: Tensor, eps: Tensor) -> None:
    """`eps`: the probes of the kernel, which test_probes holds to the reference."""
    wide = (eps.double() * jvp.double()).flatten(2)
    sums = wide.sum(2), (eps * jvp.to(eps.dtype)).to(torch.float64).flatten(2).sum(2)
    oracle, plain = ((s.mean(0), s) for s in sums)
    for name, a, o, p in zip(("estimate", "products"), actual, oracle, plain, strict=True):
        if jvp.dtype == torch.float64:  # summed in another order
            assert a.dtype == torch.float64
            assert ((a - o).abs() <= 16 * 2.0**-53 * wide.abs().sum(2).amax()).all(), name
        else:
            assert_error_within_budget(a, o, p.float(), name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity(run, probe, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    for layout in LAYOUTS:
        jvp, samples = make_case(shape, layout, dtype=dtype)
        eps = probe(shape, samples, 3, kind, accumulation_dtype(dtype), "contiguous")
        assert_parity(run(jvp, RNG, samples, kind), jvp, eps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_mean_does_not_cancel(run, probe, kind: str) -> None:
    jvp, samples = make_case((2, 3, 33, 31), mean=1e3)
    assert_parity(run(jvp, RNG, samples, kind), jvp, probe(jvp.shape[1:], samples, 3, kind, jvp.dtype, "contiguous"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probes(probe, shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    samples, weight = torch.arange(shape[0]) * 3 + 2**33, make_input((3, shape[0]), dtype=accumulation_dtype(dtype))
    for layout in LAYOUTS:
        eps = probe(shape, samples, 3, kind, dtype, layout)
        want = reference.hutchinson_probe(shape, RNG, samples, 3, kind, dtype)
        if kind == "rademacher":
            assert torch.equal(eps, want)
        else:
            assert ulp_distance(eps, want).max() <= 4
        weighted = probe(shape, samples, 3, kind, dtype, layout, weight)
        if dtype == accumulation_dtype(dtype):
            assert torch.equal(weighted, weight[..., None, None, None] * eps)
        exact = reference.hutchinson_probe(shape, RNG, samples, 3, kind, torch.float64)
        exact = weight.double()[..., None, None, None] * exact
        bound = 8 * torch.finfo(accumulation_dtype(dtype)).eps + torch.finfo(dtype).eps / 2
        torch.testing.assert_close(weighted.double(), exact, rtol=bound, atol=1e-7 if dtype == torch.float16 else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_on_nothing_else(kernel, run, shape: tuple[int, ...], kind: str) -> None:
    """Not on the format, alignment, the batch, the other probes, the grid or the order of the threads."""
    jvp, samples = make_case(shape)
    estimate, products = run(jvp, RNG, samples, kind)

    def assert_same(actual: tuple[Tensor, Tensor]) -> None:
        assert torch.equal(actual[0], estimate)
        assert torch.equal(actual[1], products)

    assert_same(run(make_case(shape, "channels_last")[0], RNG, samples, kind))
    memory = torch.empty(jvp.numel() + 1)
    assert_same(run(memory[1:].view(jvp.shape).copy_(jvp), RNG, samples, kind))
    with kernel.multiprocessors(1), kernel.order(5):
        assert_same(run(jvp, RNG, samples, kind))
    for b in range(shape[0]):
        alone = run(jvp[:, b : b + 1], RNG, samples[b : b + 1], kind)
        assert torch.equal(alone[0], estimate[b : b + 1])
        assert torch.equal(alone[1], products[:, b : b + 1])
    for k in range(3):
        assert torch.equal(run(jvp[k : k + 1], RNG + torch.tensor([0, k]), samples, kind)[1], products[k : k + 1])


def test_many_samples_on_a_small_grid(kernel, run, probe) -> None:
    """More samples than the warps that take their means, more tiles than blocks."""
    jvp, samples = make_case((300, 1, 8, 16))
    with kernel.multiprocessors(1):
        actual = run(jvp, RNG, samples, "rademacher")
        eps = probe(jvp.shape[1:], samples, 3, "rademacher", jvp.dtype, "contiguous")
    assert torch.equal(eps, reference.hutchinson_probe(jvp.shape[1:], RNG, samples, 3))
    assert_parity(actual, jvp, eps)


def test_not_finite_stays(run) -> None:
    jvp, samples = make_case((3, 2, 4, 5))
    jvp[1, 2, 1, 3, 4] = float("nan")
    estimate, products = run(jvp, RNG, samples, "gaussian")
    assert torch.isnan(products).nonzero().tolist() == [[1, 2]]
    assert torch.isnan(estimate).nonzero().tolist() == [[2]]

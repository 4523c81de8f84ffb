"""hutchinson in Triton against the reference: probes, values, formats, derivatives, and what must not change a bit."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

from fastscore import reference
from fastscore._checks import accumulation_dtype
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import hutchinson, hutchinson_probe, philox_normal, philox_rademacher
from fastscore.testing import assert_error_within_budget, ulp_distance
from fastscore.testing.inputs import LAYOUTS, make_input

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KINDS = ("rademacher", "gaussian")
# no other dimension, one element, parts of Philox blocks, more than one tile, channels
SHAPES = ((3,), (2, 1), (2, 133), (2, 2500), (2, 3, 8, 8), (2, 3, 5, 7))


def counters(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor([2**40 + 17, 5], device=device), torch.arange(batch, device=device) * 3 + 2**33


def make_products(probes: int, shape: tuple[int, ...], layout: str, device: torch.device, **options: object) -> Tensor:
    """J eps: (K, B, ...), the samples in a layout."""
    return torch.stack([make_input(shape, layout, device=device, seed=k, **options) for k in range(probes)])


def assert_parity(jvp: Tensor, rng: Tensor, samples: Tensor, kind: str) -> None:
    actual = hutchinson(jvp, rng, samples, kind)
    # the probes of the kernel, which test_probes_are_within_4_ulp holds to the reference
    eps = hutchinson_probe(jvp.shape[1:], rng, samples, jvp.shape[0], kind, accumulation_dtype(jvp.dtype))
    rows = (*jvp.shape[:2], -1)
    wide = (eps.double() * jvp.double()).reshape(rows)
    sums = wide.sum(2), (eps * jvp.to(eps.dtype)).to(torch.float64).reshape(rows).sum(2)
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
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, kind: str, device: torch.device) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        jvp = make_products(2, shape, layout, device, dtype=dtype)
        assert_parity(jvp, *counters(shape[0], device), kind)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_parity_by_layout(layout: str, device: torch.device) -> None:
    for kind in KINDS:
        jvp = make_input((12, 3, 6, 10), layout, device=device).unflatten(0, (3, 4))
        assert_parity(jvp, *counters(4, device), kind)
        assert_parity(jvp.transpose(0, 1), *counters(3, device), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_mean_does_not_cancel(kind: str, device: torch.device) -> None:
    jvp = make_products(2, (2, 2500), "contiguous", device, mean=1e3)
    assert_parity(jvp, *counters(2, device), kind)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_probes_are_those_of_their_draws(dtype: torch.dtype, channels_last: bool, device: torch.device) -> None:
    for shape in ((2, 3, 5, 7), (2, 3, 8, 8)):
        rng, samples = counters(2, device)
        for kind, draw in (("rademacher", philox_rademacher), ("gaussian", philox_normal)):
            eps = hutchinson_probe(shape, rng, samples, 3, kind, dtype, channels_last=channels_last)
            format = torch.channels_last if channels_last else torch.contiguous_format
            assert eps.shape == (3, *shape)
            assert eps.flatten(0, 1).is_contiguous(memory_format=format)
            for k in range(3):
                assert torch.equal(
                    eps[k], draw(shape, torch.tensor([2**40 + 17, 5 + k], device=device), samples, dtype)
                )


@pytest.mark.parametrize("dtype", DTYPES)
def test_probes_are_within_4_ulp(dtype: torch.dtype, device: torch.device) -> None:
    rng, samples = counters(2, device)
    for kind, ulp in (("rademacher", 0), ("gaussian", 4)):
        eps = hutchinson_probe((2, 2500), rng, samples, 2, kind, dtype)
        assert ulp_distance(eps, reference.hutchinson_probe((2, 2500), rng, samples, 2, kind, dtype)).max() <= ulp


@pytest.mark.parametrize("kind", KINDS)
def test_products_use_the_probes(kind: str, device: torch.device) -> None:
    """J = diag(d): the trace is exact for signs, and for normals the sum of d eps^2."""
    rng, samples = counters(3, device)
    eps = hutchinson_probe((3, 140), rng, samples, 4, kind, torch.float64)
    d = make_input((3, 140), dtype=torch.float64, device=device, seed=1)
    estimate, products = hutchinson(d * eps, rng, samples, kind)
    torch.testing.assert_close(products, (d * eps * eps).sum(2), rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(estimate, products.mean(0), rtol=1e-14, atol=1e-13)
    if kind == "rademacher":
        torch.testing.assert_close(products, d.sum(1).expand(4, 3), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 130), (3, 2500), (3, 3, 5, 7)])
def test_bits_do_not_depend_on_the_batch_or_the_other_probes(
    shape: tuple[int, ...], kind: str, device: torch.device
) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        jvp = make_products(3, shape, layout, device)
        rng, samples = counters(shape[0], device)
        estimate, products = hutchinson(jvp, rng, samples, kind)
        for b in range(shape[0]):
            alone = hutchinson(jvp[:, b : b + 1], rng, samples[b : b + 1], kind)
            assert torch.equal(alone[0], estimate[b : b + 1])
            assert torch.equal(alone[1], products[:, b : b + 1])
        for k in range(3):
            apart = hutchinson(jvp[k : k + 1], torch.stack((rng[0], rng[1] + k)), samples, kind)
            assert torch.equal(apart[1], products[k : k + 1])
            assert torch.equal(apart[0], products[k])


def test_empty(device: torch.device) -> None:
    for shape in ((2, 0, 3), (2, 3, 0), (1, 3, 2, 0, 4)):
        rng, samples = counters(shape[1], device)
        estimate, products = hutchinson(torch.empty(shape, device=device), rng, samples)
        assert torch.equal(estimate, torch.zeros(shape[1:2], device=device))
        assert torch.equal(products, torch.zeros(shape[:2], device=device))
        assert hutchinson_probe(shape[1:], rng, samples, shape[0]).shape == shape
    assert not LAUNCHES
    hutchinson_probe((1,), rng, samples[:1])


def test_not_finite_stays(device: torch.device) -> None:
    jvp = make_products(2, (3, 40), "contiguous", device)
    jvp[1, 2, 7] = float("nan")
    estimate, products = hutchinson(jvp, *counters(3, device))
    assert torch.isnan(products).nonzero().tolist() == [[1, 2]]
    assert torch.isnan(estimate).nonzero().tolist() == [[2]]


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones."""
    rng, samples = counters(2, device)
    cases = [
        (make_products(2, (2, 3, 8, 8), layout, device), kind)
        for layout in ("contiguous", "channels_last")
        for kind in KINDS
    ]
    before = [hutchinson(jvp, rng, samples, kind) for jvp, kind in cases]
    module = import_module("fastscore.kernels.hutchinson")

    def wide(*args: object, **options: object) -> None:
        launch(*args, **(options | ({"wide": True} if "wide" in options else {})))

    monkeypatch.setattr(module, "launch", wide)
    for (jvp, kind), want in zip(cases, before, strict=True):
        for actual, expected in zip(hutchinson(jvp, rng, samples, kind), want, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_run_on_the_kernels(kind: str, layout: str, device: torch.device) -> None:
    jvp = make_products(3, (2, 3, 4, 5), layout, device, dtype=torch.float64).requires_grad_()
    rng, samples = counters(2, device)
    of_estimate, of_products = torch.randn(2, device=device).double(), torch.randn(3, 2, device=device).double()
    got = torch.autograd.grad(hutchinson(jvp, rng, samples, kind), jvp, (of_estimate, of_products))[0]
    want = torch.autograd.grad(reference.hutchinson(jvp, rng, samples, kind), jvp, (of_estimate, of_products))[0]
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-15)
    assert got[0].stride() == jvp[0].stride()
    assert LAUNCHES == {"hutchinson_kernel": 1, "hutchinson_mean_kernel": 1, "hutchinson_probe_kernel": 1}
    tangent = torch.randn_like(jvp)
    moved = torch.func.jvp(lambda v: hutchinson(v, rng, samples, kind), (jvp.detach(),), (tangent,))[1]
    for actual, expected in zip(moved, hutchinson(tangent, rng, samples, kind), strict=True):
        assert torch.equal(actual, expected)
    twice = torch.func.vmap(lambda v: hutchinson(v, rng, samples, kind)[1])(torch.stack((jvp.detach(), tangent)))
    assert torch.equal(twice[1], hutchinson(tangent, rng, samples, kind)[1])
    low = jvp.detach().bfloat16().requires_grad_()
    (half,) = torch.autograd.grad(hutchinson(low, rng, samples, kind)[0], low, of_estimate.float())
    exact = torch.autograd.grad(reference.hutchinson(jvp, rng, samples, kind)[0], jvp, of_estimate.float().double())[0]
    plain = torch.autograd.grad(reference.hutchinson(low, rng, samples, kind)[0], low, of_estimate.float())[0]
    assert_error_within_budget(half, exact, plain, "gradient in bfloat16", factor=3)

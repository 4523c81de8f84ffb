"""Noise of the Triton kernels against its specification: bits of the words, ulps of the normals."""

from importlib import import_module

import pytest
import torch

from fastscore import reference
from fastscore.kernels import philox
from fastscore.kernels._launch import LAUNCHES, launch
from fastscore.ops import linear_step, philox_normal, philox_rademacher
from fastscore.testing import ulp_distance

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((3,), (2, 1), (2, 5), (3, 127), (2, 129), (3, 2163), (2, 3, 5, 7), (1, 2, 8, 128))
SEEDS = (0, 1, 2**40 + 17, 2**63 - 1, -1, -(2**63))
SAMPLES = (0, 1, 2**31, 2**32 - 1, 2**33 + 5, 2**63 - 1, -1)


def counters(device: torch.device, batch: int, seed: int = 2**40 + 17) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([seed, 5], device=device), torch.arange(batch, device=device) * 3 + 2**33


@pytest.mark.parametrize("draw", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_those_of_the_reference(seed: int, draw: int, device: torch.device) -> None:
    """128 signs are the four words of a block."""
    rng, samples = torch.tensor([seed, draw], device=device), torch.tensor(SAMPLES, device=device)
    shape = (len(SAMPLES), 3, 4, 32)
    signs = philox_rademacher(shape, rng, samples, torch.float64)
    words = ((signs > 0) * 2 ** torch.arange(32, device=device)).sum(-1)
    blocks = torch.arange(3, device=device)
    assert torch.equal(words, reference.philox.philox_words(rng[0], rng[1], samples[:, None], blocks))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_signs_by_shape(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    rng, samples = counters(device, shape[0])
    out = philox_rademacher(shape, rng, samples, dtype)
    assert out.is_contiguous()
    assert torch.equal(out, reference.philox_rademacher(shape, rng, samples, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_normals_by_shape(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    rng, samples = counters(device, shape[0])
    out = philox_normal(shape, rng, samples, dtype)
    want = reference.philox_normal(shape, rng, samples, dtype)
    assert out.is_contiguous()
    assert out.shape == shape
    # rounded to a half type, a number that is 4 units of float32 off differs in one unit at most
    assert int(ulp_distance(out, want).max()) <= (1 if dtype.itemsize == 2 else 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_within_four_ulp(dtype: torch.dtype, device: torch.device) -> None:
    shape = (5, 20_000)
    rng, samples = counters(device, shape[0], seed=-77)
    out, want = philox_normal(shape, rng, samples, dtype), reference.philox_normal(shape, rng, samples, dtype)
    distance = ulp_distance(out, want)
    assert int(distance.max()) <= 4
    assert float((distance > 0).double().mean()) > 0.01  # they are computed in two ways


def test_the_steps_draw_the_same(device: torch.device) -> None:
    rng, samples = counters(device, 3)
    row = torch.tensor([0.0, 1.0], device=device)
    drawn = linear_step(torch.zeros(3, 3, 5, 7, device=device), [], row, rng=rng, samples=samples)
    assert torch.equal(philox_normal((3, 3, 5, 7), rng, samples), drawn)


def test_offsets_of_64_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """What large states take, on small ones; and blocks past 2^31, which are the words of -2^31 and so on."""
    rng, samples = counters(device, 2)
    before = [draw((2, 3000), rng, samples) for draw in (philox_normal, philox_rademacher)]
    module = import_module("fastscore.kernels.philox")
    monkeypatch.setattr(module, "launch", lambda *args, **options: launch(*args, **(options | {"wide": True})))
    after = [draw((2, 3000), rng, samples) for draw in (philox_normal, philox_rademacher)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    rng, samples = counters(device, 4)
    spread = samples.repeat_interleave(2)[::2]  # not contiguous
    assert not spread.is_contiguous()
    for draw in (philox_normal, philox_rademacher):
        whole = draw((4, 3, 50), rng, spread)
        for b in range(4):
            assert torch.equal(draw((1, 3, 50), rng, samples[b : b + 1])[0], whole[b])


def test_empty_and_launches(device: torch.device) -> None:
    rng, samples = counters(device, 2)
    for shape in ((2, 0), (2, 3, 0, 4)):
        assert philox_normal(shape, rng, samples).shape == shape
    assert philox_rademacher((0, 3), rng, samples[:0]).shape == (0, 3)
    assert not LAUNCHES
    philox_normal((2, philox._BLOCK + 1), rng, samples)
    philox_rademacher((2, 3), rng, samples)
    assert LAUNCHES == {"philox_normal_kernel": 1, "philox_rademacher_kernel": 1}

"""Where noise comes from: what each source promises, and the law of the counter-based one."""

import math

import pytest
import torch
from torch import Tensor

from fastscore import _backend
from fastscore.noise import Noise, PhiloxNoise, ReplayNoise, TorchNoise, as_noise
from fastscore.ops import linear_step

# ------------------------------------------------------------------------------------------------ PhiloxNoise


@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_a_batch_may_be_split_sharded_compacted_and_restarted(kind: str) -> None:
    def draw(noise: PhiloxNoise, rows: int) -> Tensor:
        return getattr(noise, kind)((rows, 3, 5, 7), draw=9)

    whole = draw(PhiloxNoise(42), 12)
    parts = [draw(PhiloxNoise(42, samples=range(i, i + 4)), 4) for i in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(draw(PhiloxNoise(42), 5), whole[:5]), "a smaller batch"
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(PhiloxNoise(42).select(order), 12), whole[order])
    mask = order % 3 == 0
    assert torch.equal(draw(PhiloxNoise(42).select(mask), 4), whole[mask])
    twice = PhiloxNoise(42, samples=torch.arange(12)).select(mask).select([3, 1])
    assert torch.equal(draw(twice, 2), whole[mask][[3, 1]])
    shard = PhiloxNoise(42, samples=torch.arange(100, 112)).select([2])
    assert torch.equal(draw(shard, 1), draw(PhiloxNoise(42, samples=[102]), 1))


def test_draws_of_a_loop_are_those_of_normal() -> None:
    noise, x = PhiloxNoise(-3, samples=[5, 2**40]), torch.zeros(2, 3, 4, 4)
    table, samples = noise.rng_table(range(1, 5)), noise.samples_for(2)
    assert table.tolist() == [[-3, 1], [-3, 2], [-3, 3], [-3, 4]]
    assert samples.tolist() == [5, 2**40]
    for row, draw in zip(table, range(1, 5), strict=True):
        step = linear_step(x, (), torch.tensor([0.0, 1.0]), rng=row, samples=samples)
        assert torch.equal(step, noise.normal(x.shape, draw=draw))


def test_table_and_samples_have_the_shapes_kernels_take() -> None:
    noise = PhiloxNoise(2**63 - 1)
    assert noise.rng_table([0, 2**32 - 1]).tolist() == [[2**63 - 1, 0], [2**63 - 1, 2**32 - 1]]
    empty = noise.rng_table([])
    assert (empty.shape, empty.dtype) == ((0, 2), torch.int64)
    assert noise.samples_for(3).tolist() == [0, 1, 2]
    assert noise.rng_table(range(3), "meta").device.type == noise.samples_for(3, "meta").device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype(dtype: torch.dtype) -> None:
    noise = PhiloxNoise(1)
    for draw in (noise.normal, noise.rademacher):
        z = draw((2, 100), dtype=dtype)
        assert z.dtype == dtype
        torch.testing.assert_close(z, draw((2, 100), dtype=torch.float64).to(dtype))


def test_reference_backend_draws_the_same() -> None:
    fused = PhiloxNoise(1).normal((2, 500), draw=3)
    with _backend.backend("reference"):
        torch.testing.assert_close(PhiloxNoise(1).normal((2, 500), draw=3), fused)


def test_seeds_draws_and_samples_differ() -> None:
    base = PhiloxNoise(0).normal((1, 400))
    assert base.unique().numel() > 390
    others = [
        PhiloxNoise(1).normal((1, 400)),
        PhiloxNoise(2**32).normal((1, 400)),
        PhiloxNoise(0).normal((1, 400), draw=1),
    ]
    others += [PhiloxNoise(0, [1]).normal((1, 400)), PhiloxNoise(0, [2**32]).normal((1, 400))]
    for other in others:
        assert not torch.isin(other, base).any()


def test_repr_reads_back() -> None:
    for noise in (PhiloxNoise(-5), PhiloxNoise(7, samples=[3, 1])):
        again = eval(repr(noise))
        assert torch.equal(again.normal((2, 3)), noise.normal((2, 3)))


BAD_PHILOX = [
    (TypeError, "seed must be an integer, got 1.5", lambda: PhiloxNoise(1.5)),
    (TypeError, "seed must be an integer, got True", lambda: PhiloxNoise(True)),
    (ValueError, r"seed must fit in 64 bits, \[-2\^63, 2\^63\), got 9223372036854775808", lambda: PhiloxNoise(2**63)),
    (TypeError, "samples must hold integers, got torch.float32", lambda: PhiloxNoise(0, torch.zeros(3))),
    (
        ValueError,
        r"samples must have one dimension, got shape \(1, 3\)",
        lambda: PhiloxNoise(0, torch.zeros(1, 3).long()),
    ),
    (TypeError, "samples must be an integer, got 0.5", lambda: PhiloxNoise(0, [0.5])),
    (TypeError, "samples must be a sequence of integers or an integer tensor, got 3", lambda: PhiloxNoise(0, 3)),
    (ValueError, "samples must fit in 64 bits", lambda: PhiloxNoise(0, [2**64])),
    (ValueError, "samples holds 2 indices, but the batch has 3 rows", lambda: PhiloxNoise(0, [1, 2]).normal((3, 4))),
    (ValueError, r"draw must lie in \[0, 2\^32\), got -1", lambda: PhiloxNoise(0).normal((3, 4), draw=-1)),
    (ValueError, r"draw must lie in \[0, 2\^32\), got 4294967296", lambda: PhiloxNoise(0).rng_table([2**32])),
    (ValueError, r"shape must be \(B, ...\), got \(\)", lambda: PhiloxNoise(0).normal(())),
    (ValueError, r"rows must have one dimension", lambda: PhiloxNoise(0).select(torch.zeros(2, 2).long())),
    (TypeError, r"rows must hold integers, got torch.float32", lambda: PhiloxNoise(0).select(torch.zeros(2))),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD_PHILOX, ids=[message[:40] for _, message, _ in BAD_PHILOX])
def test_bad_arguments(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()


# ------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_noise_is_the_generators_stream(dtype: torch.dtype) -> None:
    noise, generator = TorchNoise(torch.Generator().manual_seed(3)), torch.Generator().manual_seed(3)
    for shape in ((2, 3), (2, 20), (5,)):
        want = torch.randn(shape, generator=generator, dtype=dtype)
        assert torch.equal(noise.normal(shape, dtype=dtype, draw=7), want)
    want = torch.randint(0, 2, (4, 9), generator=generator).to(dtype) * 2 - 1
    assert torch.equal(noise.rademacher((4, 9), dtype=dtype), want)


def test_torch_noise_without_a_generator_is_the_global_stream() -> None:
    torch.manual_seed(5)
    want = (
        torch.randn(2, 3),
        torch.randint_like(torch.empty(2, 3), 0, 2) * 2 - 1,
    )  # as published for Hutchinson's probes
    torch.manual_seed(5)
    assert torch.equal(TorchNoise().normal((2, 3)), want[0])
    assert torch.equal(TorchNoise().rademacher((2, 3)), want[1])


def test_torch_noise_errors() -> None:
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got int"):
        TorchNoise(3)
    with pytest.raises(ValueError, match=r"the generator is on cpu, but noise is asked for on meta; make it there"):
        TorchNoise(torch.Generator()).normal((2, 3), device="meta")


def test_replay_gives_the_recording_and_keeps_it() -> None:
    tensors = [torch.randn(2, 3), torch.ones(4, dtype=torch.float64)]
    noise = ReplayNoise(iter(tensors))
    for _ in range(2):
        first, second = noise.normal((2, 3), draw=5), noise.rademacher((4,), dtype=torch.float64, device="cpu")
        assert torch.equal(first, tensors[0])
        assert torch.equal(second, tensors[1])
        first.zero_()  # what a sampler does to its state must not reach the recording
        noise.rewind()


def test_replay_errors() -> None:
    noise = ReplayNoise([torch.zeros(2, 3)])
    with pytest.raises(ValueError, match=r"tensors\[0\] has shape \(2, 3\), but noise of \(3, 2\) is asked for"):
        noise.normal((3, 2))
    with pytest.raises(TypeError, match=r"tensors\[0\] is torch.float32, but noise of torch.float64 is asked for"):
        noise.normal((2, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"tensors\[0\] is on cpu, but noise on meta is asked for"):
        noise.normal((2, 3), device="meta")
    assert noise.normal((2, 3)).shape == (2, 3)  # a refused call takes nothing
    with pytest.raises(ValueError, match="the recording holds 1 tensors, and one more is asked for"):
        noise.normal((2, 3))
    with pytest.raises(TypeError, match=r"tensors\[1\] must be a tensor, got int"):
        ReplayNoise([torch.zeros(1), 3])


@pytest.mark.parametrize("noise", [TorchNoise(), ReplayNoise([])])
def test_streams_are_not_counter_based(noise: Noise) -> None:
    assert not noise.counter_based
    assert PhiloxNoise(0).counter_based
    with pytest.raises(TypeError, match=f"{type(noise).__name__} is not counter-based"):
        noise.rng_table([0])
    with pytest.raises(TypeError, match=f"{type(noise).__name__} is not counter-based"):
        noise.samples_for(1)


def test_as_noise() -> None:
    assert torch.equal(as_noise(3).normal((2, 2)), PhiloxNoise(3).normal((2, 2)))
    given = TorchNoise()
    assert as_noise(3, given) is given
    with pytest.raises(TypeError, match="got Generator; wrap it: TorchNoise"):
        as_noise(0, torch.Generator())
    with pytest.raises(TypeError, match="noise must be PhiloxNoise, TorchNoise or ReplayNoise, got int"):
        as_noise(0, 3)


# ---------------------------------------------------------------------------------------- the law of PhiloxNoise

SAMPLES, DRAWS, ELEMENTS = 100, 10, 10_000
LIMIT = 5.0  # of |z|: false alarm 6e-7 each; the seeds are fixed, so a pass stays a pass


@pytest.fixture(scope="module")
def normals() -> Tensor:
    """10 million draws, (draws, samples, elements), float32."""
    return torch.stack([PhiloxNoise(2024).normal((SAMPLES, ELEMENTS), draw=draw) for draw in range(DRAWS)])


def score(products: Tensor, variance: float) -> float:
    """The mean of `products`, of expectation 0 and this variance each, in standard deviations of that mean."""
    return float(products.mean(dtype=torch.float64)) * math.sqrt(products.numel() / variance)


def test_moments(normals: Tensor) -> None:
    z = normals.double().flatten()
    # Moment k of a standard normal: expectation m_k, variance of z^k is m_2k - m_k^2.
    for power, expectation, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(score(z**power - expectation, variance)) < LIMIT, f"moment {power}"


def test_kolmogorov_smirnov(normals: Tensor) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(normals.flatten().numpy(), "norm").pvalue > 1e-4
    for lane in range(4):  # cosine and sine of both pairs of a block
        assert stats.kstest(normals[..., lane::4].flatten().numpy(), "norm").pvalue > 1e-4, lane
    tails = normals.abs().flatten()
    for bound in (3.0, 4.0, 5.0):
        p = math.erfc(bound / math.sqrt(2))
        count = int((tails > bound).sum())
        assert abs(count - tails.numel() * p) < LIMIT * math.sqrt(tails.numel() * p), f"{count} beyond {bound}"


def test_correlations(normals: Tensor) -> None:
    other = torch.stack([PhiloxNoise(2025).normal((SAMPLES, ELEMENTS), draw=draw) for draw in range(DRAWS)])
    far = torch.stack([PhiloxNoise(2024 + 2**32).normal((SAMPLES, ELEMENTS), draw=draw) for draw in range(DRAWS)])
    pairs = {f"element + {k}": (normals[..., k:], normals[..., :-k]) for k in (1, 2, 3, 4, 8, 16, 64)}
    pairs |= {f"sample + {k}": (normals[:, k:], normals[:, :-k]) for k in (1, 2)}
    pairs |= {f"draw + {k}": (normals[k:], normals[:-k]) for k in (1, 2)}
    pairs |= {"seed + 1": (normals, other), "seed + 2^32": (normals, far)}
    for name, (a, b) in pairs.items():
        assert abs(score(a * b, 1)) < LIMIT, name
        assert abs(score((a.square() - 1) * (b.square() - 1), 4)) < LIMIT, f"squares, {name}"
        assert abs(score(a * (b.square() - 1), 2)) < LIMIT, f"linear with square, {name}"


def test_rademacher_is_balanced_and_uncorrelated() -> None:
    signs = torch.stack([PhiloxNoise(7).rademacher((SAMPLES, 12_800), draw=draw) for draw in range(8)])
    assert signs.abs().eq(1).all()
    assert abs(score(signs, 1)) < LIMIT
    for bit in range(128):
        assert abs(score(signs[..., bit::128], 1)) < LIMIT, f"bit {bit} of a block"
    for k in (1, 2, 31, 32, 33, 64, 127, 128):
        assert abs(score(signs[..., k:] * signs[..., :-k], 1)) < LIMIT, f"element + {k}"
    assert abs(score(signs[:, 1:] * signs[:, :-1], 1)) < LIMIT, "sample + 1"
    assert abs(score(signs[1:] * signs[:-1], 1)) < LIMIT, "draw + 1"

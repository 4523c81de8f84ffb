"""csrc/cuda/device.h and the noise of csrc/include/fastscore/philox.h, in the emulator."""

import pytest
import torch

from fastscore.reference.philox import philox_normal, philox_words


@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_sum(probes, probe, threads: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(threads)
    values = 1000 + torch.randn(threads, 2, dtype=dtype, generator=generator)

    def sums(order: int) -> torch.Tensor:
        out = torch.empty(threads, 3, dtype=dtype)
        with probes.order(order):
            return probe("block_sums", values, out, count=threads, number=int(dtype == torch.float64))

    out = sums(0)
    exact = values.double()
    want = torch.stack([*exact.sum(0), (exact**2).sum()])
    # At most two trees of ten levels, and the roundings of a square, a quotient and a sum.
    assert ((out[0].double() - want).abs() <= 23 * torch.finfo(dtype).eps / 2 * want).all()
    assert torch.equal(out, out[:1].expand(threads, 3)), "all threads get the same bits"
    assert all(torch.equal(sums(order), out) for order in (1, 2)), "in any order of the threads"


@pytest.mark.parametrize("count", [1, 2, 33, 1000, 5000])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_block_moments(probes, probe, count: int, mean: float) -> None:
    values = mean + torch.randn(count, generator=torch.Generator().manual_seed(count))
    out = probe("block_moments", values, torch.empty(128, 3), count=count, number=128)
    exact = values.double()
    assert torch.equal(out, out[:1].expand(128, 3))
    assert out[0, 0] == count
    # A thread adds up to 20 numbers, and eight merges follow. An error of the mean enters each deviation once; the
    # squares of the deviations are all positive, so that their sum is as good as its terms.
    u = 2.0**-24
    scale = float(exact.abs().max())
    assert abs(float(out[0, 1]) - float(exact.mean())) <= 10 * u * scale
    m2 = float(((exact - exact.mean()) ** 2).sum())
    assert abs(float(out[0, 2]) - m2) <= 60 * u * m2 + 8 * u * scale * (count * m2) ** 0.5
    with probes.order(5):
        again = probe("block_moments", values, torch.empty(128, 3), count=count, number=128)
    assert torch.equal(again, out)


@pytest.mark.parametrize(
    ("seed", "draw", "sample"), [(0, 0, 0), (2**63 - 1, 2**32 - 1, 2**40 + 5), (-1, 7, -3), (12345, 1, 2)]
)
def test_philox(probe, seed: int, draw: int, sample: int) -> None:
    out = probe("noise", torch.tensor([seed, draw, sample]), torch.empty(500, 12, dtype=torch.int64), count=500)
    assert torch.equal(out[:, :4], philox_words(seed, draw, sample, torch.arange(500)).long())
    exact = philox_normal((1, 2000), torch.tensor([seed, draw]), torch.tensor([sample]), torch.float64).view(500, 4)
    single = out[:, 4:8].int().view(torch.float32).double()
    double = out[:, 8:].contiguous().view(torch.float64)
    for dtype, z in ((torch.float32, single), (torch.float64, double)):
        ulp = torch.finfo(dtype).eps * 2.0 ** exact.abs().log2().floor()
        assert ((z - exact).abs() <= 4 * ulp).all()  # what fastscore.noise promises

"""Which levels are visited: the published formulas, written out, and what is refused."""

import math

import numpy as np
import pytest
import torch

from fastscore import VESDE, VPSDE, Convention, DDIMInverseSampler, DDIMSampler, DDPMSampler, DiscreteVPSDE
from fastscore.samplers.timesteps import timesteps

SDE = DiscreteVPSDE.linear()


def network(x, label):
    return x


def visited(spacing, steps=None, levels=1000, offset=0):
    return timesteps("test", spacing, levels, steps, default_steps=50, offset=offset)


@pytest.mark.parametrize(
    ("levels", "steps"),
    [(n, s) for n in (7, 100, 1000, 1001) for s in (1, 2, 3, 7, 16, 33, 48, 50, 99, 100, 1000) if s <= n],
)
def test_published_formulas(levels, steps):
    linspace = np.linspace(0, levels - 1, steps).round().astype(int)[::-1]
    leading = (np.arange(0, steps) * (levels // steps)).round().astype(int)[::-1]
    trailing = np.round(np.arange(levels, 0, -levels / steps)).astype(int) - 1
    uniform = list(range(0, levels, levels // steps))[::-1]
    quad = sorted({int(s) for s in np.linspace(0, np.sqrt(levels * 0.8), steps) ** 2}, reverse=True)
    assert visited("linspace", steps, levels) == linspace.tolist()
    assert visited("leading", steps, levels) == leading.tolist()
    assert visited("trailing", steps, levels) == trailing[:steps].tolist()  # 1001 / 1000: arange gives one too many
    assert visited("uniform", steps, levels) == uniform
    assert visited("quad", steps, levels) == quad


def sections(levels, counts):
    """Section by section, each with its first and its last level."""
    chosen, start = [], 0
    for i, count in enumerate(counts):
        size = levels // len(counts) + (1 if i < levels % len(counts) else 0)
        stride, at = 1.0 if count == 1 else (size - 1) / (count - 1), 0.0
        for _ in range(count):
            chosen.append(start + round(at))
            at += stride
        start += size
    return chosen[::-1]


@pytest.mark.parametrize("counts", [[25], [10, 15, 5], [1], [11], [250], [1, 1, 1], [334, 333, 333]])
def test_section_counts(counts):
    chosen = visited(",".join(map(str, counts)))
    assert chosen == sections(1000, counts)
    assert len(chosen) == sum(counts)


def test_known_values():
    assert visited("trailing", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert visited("leading", 10, offset=1) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert visited("linspace", 5) == [999, 749, 500, 250, 0]
    assert visited("uniform", 3) == [999, 666, 333, 0]
    assert visited("quad", 5) == [800, 450, 200, 50, 0]
    assert visited("ddim25") == list(range(0, 1000, 40))[::-1]
    assert visited("ddim10", 10) == list(range(0, 1000, 100))[::-1]
    assert visited("10,15,5")[:5] == [999, 916, 833, 750, 667]
    assert visited(torch.tensor([900, 5, 0])) == [900, 5, 0]


@pytest.mark.parametrize("sampler", [DDPMSampler, DDIMSampler, DDIMInverseSampler])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "even"}, r"spacing must be one of linspace, .* karras, section counts .* got 'even'"),
        ({"spacing": "leading", "steps": 1001}, r"steps must be at most the number of levels, 1000, got 1001"),
        ({"spacing": "leading", "steps": 1000, "offset": 1}, r"timesteps must lie below .* 1000, got 1000"),
        ({"spacing": "trailing", "offset": 1}, r"offset belongs to spacing='leading', got offset=1 with 'trailing'"),
        ({"spacing": "10,0"}, r"must take 1 to 500 of the 500 levels of section 1"),
        ({"spacing": "600,10"}, r"must take 1 to 500 of the 500 levels of section 0"),
        ({"spacing": "ddim700"}, r"no stride takes 700 of 1000 levels"),
        ({"spacing": "ddim10", "steps": 20}, r"spacing='ddim10' names 10 timesteps, but steps is 20"),
        ({"spacing": torch.tensor([5, 900])}, r"timesteps must fall strictly to 0 or more, got \[5, 900\]"),
        ({"spacing": torch.tensor([5, 5])}, r"timesteps must fall strictly"),
        ({"spacing": torch.tensor([5, -1])}, r"timesteps must fall strictly to 0 or more"),
        ({"spacing": torch.tensor([[5]])}, r"must be integers of shape \(S,\), S >= 1, got torch.int64 of shape"),
        ({"spacing": torch.tensor([True])}, r"must be integers of shape \(S,\)"),
        ({"spacing": torch.tensor([1000, 0])}, r"must lie below the number of levels, 1000, got 1000"),
        ({"steps": 0}, r"steps must be at least 1, got 0"),
        ({"spacing": torch.tensor([0.5, 0.7]), "steps": 5}, r"spacing, given as times, must fall strictly"),
    ],
)
def test_refused(sampler, options, message):
    with pytest.raises(ValueError, match=rf"{sampler.__name__}: .*{message}"):
        sampler(SDE, network, **options)


def test_levels_belong_to_a_discrete_schedule():
    with pytest.raises(ValueError, match=r"'leading' counts the levels of a DiscreteVPSDE; VPSDE takes linear, quadr"):
        DDIMSampler(VPSDE(), network, spacing="leading")
    with pytest.raises(ValueError, match=r"DDPMSampler: spacing='25' counts the levels .* VESDE takes"):
        DDPMSampler(VESDE(), network, spacing="25")


def test_the_end_lies_below_the_last_level():
    with pytest.raises(ValueError, match=r"eps must be at most the time of the last timestep, 0.011, got 0.5"):
        DDIMSampler(SDE, network, spacing=torch.tensor([900, 10]), eps=0.5, denoise=False)
    assert DDIMSampler(SDE, network, spacing=torch.tensor([900, 10]), eps=0.005, denoise=False).steps == 2


def test_default_numbers_of_steps():
    assert DDPMSampler(SDE, network).plan().nfe == 1000
    assert DDPMSampler(DiscreteVPSDE.linear(40), network).plan().nfe == 40
    assert DDIMSampler(SDE, network).plan().nfe == 50
    assert DDIMSampler(VPSDE(), network).plan().nfe == 50
    assert DDIMSampler(SDE, network, spacing="10,15,5").plan().nfe == 30
    assert DDIMSampler(SDE, network, spacing=torch.tensor([999, 3])).plan().nfe == 2
    assert DDIMSampler(VPSDE(), network, spacing=torch.tensor([1.0, 0.5, 0.1])).plan().nfe == 3
    assert DDIMSampler(VPSDE(), network, spacing=torch.tensor([1.0, 0.5, 0.1]), denoise=False).plan().nfe == 2


@pytest.mark.parametrize("sampler", [DDPMSampler, DDIMSampler])
def test_a_first_level_without_signal(sampler):
    betas = torch.linspace(0.01, 0.3, 20, dtype=torch.float64)
    betas[-1] = 1.0
    sde = DiscreteVPSDE.from_betas(betas, min_log_snr=None)
    with pytest.raises(ValueError, match=r"no signal at timestep 19, and a network that predicts the noise says noth"):
        sampler(sde, network, steps=5)
    for prediction in ("v", "denoised"):
        plan = sampler(sde, network, steps=5, convention=Convention(prediction, "timestep")).plan()
        assert all(math.isfinite(c) for step in plan.steps for c in step.coefficients)

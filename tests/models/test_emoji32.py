"""The bundled model of emoji: what it carries, what it weighs, what it has learned of images and of classes."""

import json
from pathlib import Path

import pytest
import torch

from fastscore import models
from fastscore.score import Convention
from fastscore.sde import VPSDE
from fastscore.training.data import load_emoji, to_signed_unit
from fastscore.training.emoji import CLASSES

# root mean square error of the clean estimate by time: a tenth above what the shipped weights have
LIMITS = {0.02: 0.0345, 0.1: 0.098, 0.3: 0.209, 0.5: 0.328}
WEIGHTS = Path(models.__file__).parent / "weights"


@pytest.fixture(scope="module")
def network():
    return models.load("emoji32")


@pytest.fixture(scope="module")
def emoji(needs_emoji):
    images, labels, _ = load_emoji()
    return to_signed_unit(images[::33]), labels[::33]


def test_what_it_carries(network):
    assert network.shape == (3, 32, 32)
    assert network.sde == VPSDE(0.1, 20.0)
    assert network.convention == Convention("v", "scaled_time")
    assert network.card["classes"] == list(CLASSES)
    assert network.config.num_classes == len(CLASSES) + 1
    assert network.config.null_class
    assert not network.training
    assert 2e6 < sum(p.numel() for p in network.parameters()) < 4e6


def test_how_it_was_made_is_told(network):
    card = json.loads((WEIGHTS / "emoji32.json").read_text())
    assert card == network.card
    assert card["command"].startswith("python scripts/train.py --config emoji32 ")
    assert card["steps_made"] == card["training"]["steps"]
    assert isinstance(card["seed"], int)


def test_weights_are_small():
    assert (WEIGHTS / "emoji32.safetensors").stat().st_size <= 8_000_000


def squared_errors(network, images, t, classes):
    """Of the clean estimate, one for every image."""
    time = torch.full((len(images),), t, dtype=torch.float64)
    alpha, sigma = (value.float()[:, None, None, None] for value in network.sde.marginal(time))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    x = alpha * images + sigma * noise
    p, q = (
        value.float()[:, None, None, None] for value in network.convention.coefficients(network.sde, time, "denoised")
    )
    with torch.no_grad():
        h = network(x, network.convention.labels(network.sde, time).float(), classes)
    return (p * x + q * h - images).square().flatten(1).mean(1)


@pytest.mark.parametrize("t", LIMITS)
def test_clean_estimates(network, emoji, t):
    assert squared_errors(network, emoji[0], t, emoji[1]).mean().sqrt() <= LIMITS[t]


def test_the_class_tells_it_something(network, emoji):
    """Where little is left of the image: its class makes the squared error 0.174, none 0.202, another one 0.248."""
    images, labels = emoji
    right, none, wrong = (
        squared_errors(network, images, 0.7, classes).mean() for classes in (labels, None, (labels + 4) % 8)
    )
    assert right < 0.9 * none
    assert right < 0.75 * wrong

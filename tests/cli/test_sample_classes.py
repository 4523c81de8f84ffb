"""`fastscore sample --label`: by the network itself, by its classifier, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastscore
from fastscore import cli, models
from fastscore.models import ADMConfig, ClassifierConfig

ANIMALS = ("cat", "dog", "7")


def with_card(network, **card):
    network.sde, network.convention = fastscore.VPSDE(), fastscore.Convention("noise", label="scaled_time")
    network.card = card
    return network.eval()


@pytest.fixture
def models_by_name(monkeypatch):
    """A network with classes; one without, and its classifier; one alone."""
    torch.manual_seed(0)
    adm = ADMConfig(
        image_size=4, in_channels=1, out_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), num_classes=4, null_class=True,
    )  # fmt: skip
    small = ClassifierConfig(image_size=4, num_channels=1, num_classes=3, nf=4, ch_mult=(1,))
    known = {
        "classes": with_card(models.create(adm), classes=ANIMALS),
        "plain": with_card(models.create({**adm.to_dict(), "num_classes": None, "null_class": False})),
        "plain-classifier": with_card(models.create(small), classes=ANIMALS),
        "alone": with_card(models.create({**adm.to_dict(), "num_classes": None, "null_class": False})),
    }
    for network in known.values():
        for parameter in network.parameters():  # as made, the last layers are 0
            torch.nn.init.normal_(parameter, std=0.3)
    monkeypatch.setattr(models, "load", known.__getitem__)
    monkeypatch.setattr(models, "names", lambda: list(known))
    return SimpleNamespace(**{name.replace("-", "_"): network for name, network in known.items()})


def run(out, model, *options):
    return cli.main(
        ["sample", "--out", str(out), "--model", model, "--sampler", "ddim", "--steps", "3", "--num", "2", *options]
    )


def drawn(out):
    return torch.from_numpy(np.load(out)["samples"])


@pytest.mark.parametrize(("label", "number"), [("dog", 1), ("0", 0), ("7", 2)])
def test_a_network_with_classes_is_guided_without_a_classifier(models_by_name, tmp_path, label, number):
    out = tmp_path / "x.npz"
    assert run(out, "classes", "--label", label, "--guidance", "2.5") == 0
    model = models_by_name.classes
    guided = fastscore.control.ClassifierFreeGuidance(model, torch.tensor([number]), 3, scale=2.5)
    expected = fastscore.DDIMSampler(model.sde, guided, steps=3).sample((2, 1, 4, 4), seed=0)
    torch.testing.assert_close(drawn(out), expected)


def test_without_a_label_it_draws_of_all_classes(models_by_name, tmp_path):
    assert run(tmp_path / "x.npz", "classes") == 0
    model = models_by_name.classes
    expected = fastscore.DDIMSampler(model.sde, model, steps=3).sample((2, 1, 4, 4), seed=0)
    torch.testing.assert_close(drawn(tmp_path / "x.npz"), expected)


def test_another_network_is_guided_by_its_classifier(models_by_name, tmp_path):
    assert run(tmp_path / "x.npz", "plain", "--label", "cat", "--guidance", "3") == 0
    model = models_by_name.plain
    hook = fastscore.control.ClassifierGuidance(models_by_name.plain_classifier, torch.tensor([0]), 3, scale=3.0)
    sampler = fastscore.DDIMSampler(model.sde, model, steps=3)
    torch.testing.assert_close(drawn(tmp_path / "x.npz"), sampler.sample((2, 1, 4, 4), seed=0, hooks=[hook]))


@pytest.mark.usefixtures("models_by_name")
@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("classes", ["--label", "bird"], "--label must be one of cat, dog, 7, or a number below 3, got 'bird'"),
        ("classes", ["--label", "3"], "--label must be one of cat, dog, 7, or a number below 3, got '3'"),
        ("alone", ["--label", "cat"], "--label: alone was trained without classes, and no classifier of them comes"),
        ("plain-classifier", [], "--model: plain-classifier is a classifier, not a score network"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, capsys, model, options, message):
    assert run(tmp_path / "x.npz", model, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

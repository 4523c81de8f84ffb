"""scripts/evaluate_classes.py with its emoji_classifier.py: judges, what they have not seen, shares, and the tables."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastscore
from fastscore.training.data import LabeledImages

pytest.importorskip("tqdm", reason="the progress bars of scripts/evaluate_classes.py")

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)  # as Python does for a script
    for name in ("evaluate_classes", "emoji_classifier", "digit_classifier", "artist", "captions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("evaluate_classes")


@pytest.fixture
def emoji():
    """Twenty pictures and their mirror images, side by side, and four flags, which have none."""
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    both = [version for image in images[:20] for version in (image, image.flip(2))]
    labels = torch.tensor([k // 2 % 2 for k in range(40)] + [2] * 4)
    return LabeledImages(torch.stack([*both, *images[20:]]), labels, ("a", "b", "flags"))


def test_mirror_images_stay_together(script, emoji):
    training, held_out = script.emoji_classifier.split(emoji, share=0.4)
    assert len(training.images) + len(held_out.images) == 44
    assert 8 < len(held_out.images) < 28
    known = {image.numpy().tobytes() for image in training.images}
    for image in held_out.images:
        assert image.numpy().tobytes() not in known
        assert image.flip(2).numpy().tobytes() not in known
    for part in (training, held_out):
        for image, label in zip(part.images, part.labels, strict=True):
            place = [torch.equal(image, one) for one in emoji.images].index(True)
            assert label == emoji.labels[place]


def test_the_judge_of_emoji_learns_and_is_kept(script, threads, tmp_path):
    """Classes by color."""
    classifier = script.emoji_classifier
    colors = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8).repeat(32, 1)
    spots = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    images = torch.where(spots, colors[:, :, None, None], 255).to(torch.uint8)
    emoji = LabeledImages(images, torch.arange(64) % 2, ("red", "blue"))
    with threads(1):
        judge = classifier.train(emoji, epochs=6, batch=16)
        again = classifier.train(emoji, epochs=6, batch=16)
        logits = judge(images.float() / 127.5 - 1)
        assert torch.equal(logits.argmax(1), emoji.labels)
        assert torch.equal(logits, again(images.float() / 127.5 - 1))
    torch.save(judge.state_dict(), tmp_path / "judge.pt")
    assert torch.equal(classifier.load(tmp_path / "judge.pt", emoji)(images.float()), judge(images.float()))


def test_share(script):
    images = torch.arange(1000.0).reshape(1000, 1)
    labels = torch.arange(1000) % 2
    labels[:100] = 1 - labels[:100]
    found = script.share(lambda x: torch.stack([x[:, 0] % 2 == 0, x[:, 0] % 2 == 1], 1).float(), images, labels)
    assert found == "90.0 ± 0.9 %"  # the square root of 0.9 0.1 / 1000


BRIGHTNESS = torch.linspace(-0.09, 0.09, 10)  # of the classes


class Denoiser(torch.nn.Module):
    """Exact for independent normal pixels of standard deviation 0.3, few of which are clipped."""

    sde = fastscore.VPSDE()
    convention = fastscore.Convention("denoised", "time")
    shape = (1, 32, 32)
    card = {"name": "mnist32", "training": {"dataset": "mnist"}}  # noqa: RUF012

    def forward(self, x, t):
        alpha, sigma = (value.to(x).reshape(-1, 1, 1, 1) for value in self.sde.marginal(t))
        return alpha * 0.09 / (alpha.square() * 0.09 + sigma.square()) * x


class Brightness(torch.nn.Module):
    """Exact for classes of one brightness each, to within 0.001: logits (B, 10)."""

    card = {"classes": list("0123456789")}  # noqa: RUF012

    def forward(self, x, t=None):
        alpha, sigma = (1.0, 0.0) if t is None else (v.to(x)[:, None] for v in Denoiser.sde.marginal(t))
        variance = (alpha * 0.001) ** 2 + (sigma / 32) ** 2
        return -(x.mean((1, 2, 3))[:, None] - alpha * BRIGHTNESS.to(x)).square() / (2 * variance)


@pytest.fixture
def run(script, monkeypatch, tmp_path, capsys):
    """With images of one brightness, and one other pixel, in the place of digits."""
    labels = torch.arange(60) % 10
    inside = (1024 * BRIGHTNESS[labels] + 240) / 784  # a black border comes around
    images = ((inside + 1) * 127.5).round().to(torch.uint8).reshape(-1, 1, 1, 1).repeat(1, 1, 28, 28)
    images[torch.arange(60), 0, 0, torch.arange(60) // 10] = 0
    np.savez(tmp_path / "digits.npz", X=images.reshape(60, 784).numpy(), y=labels.numpy())
    padded = torch.nn.functional.pad(images[:40], (2, 2, 2, 2))
    artist = sys.modules["artist"]
    loaded = {"mnist32": Denoiser(), "mnist32-classifier": Brightness()}
    monkeypatch.setattr(artist.models, "load", loaded.__getitem__)
    monkeypatch.setattr(artist, "DATASETS", {"mnist": lambda cache: LabeledImages(padded, labels[:40], ())})
    monkeypatch.setattr(script.digit_classifier, "load_classifier", lambda path, digits: Brightness())

    def call(*options):
        given = ["--mnist", str(tmp_path / "digits.npz"), "--out", str(tmp_path / "out")]
        code = script.main([*given, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_tables(run):
    code, out, err = run("--num", "20", "--draw", "ddim:200:1", "ddim:200:0")
    assert code == 0, err
    assert "the judge names 100.0 ± 0.0 % of 20 images that it has not seen" in out
    assert len(re.findall(r"^\| 0\.\d+ \| .* % \|$", out, re.MULTILINE)) == 5
    rows = re.findall(r"^\| `ddim` \| 200 \| (\d) \| ([\d.]+) ± [\d.]+ % \|$", out, re.MULTILINE)
    assert [scale for scale, _ in rows] == ["1", "0"]
    guided, left_alone = (float(found) for _, found in rows)
    assert guided > 90
    assert left_alone < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--draw", "ddim"), "must be SAMPLER:STEPS:SCALE, got 'ddim'"),
        (("--draw", "euler:5:1"), "euler"),
        (("--mnist", "nowhere.npz"), "there is no nowhere.npz"),
    ],
)
def test_mistakes(run, capsys, options, message):
    try:
        code, _, err = run(*options)
    except SystemExit as stop:
        code, err = stop.code, capsys.readouterr().err
    assert code == 2
    assert message in err

"""scripts/gallery.py with its artist.py and captions.py: every picture, small networks in the place of trained ones."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore
from fastscore.models import ADMConfig, create
from fastscore.training.data import LabeledImages

pytest.importorskip("tqdm", reason="the progress bars of scripts/gallery.py")

SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNTS = {"gray": 10, "color": 3}  # of classes


class Denoiser(torch.nn.Module):
    """Exact for independent normal pixels of standard deviation 0.6."""

    sde = fastscore.VPSDE()
    convention = fastscore.Convention("denoised", "time")

    def __init__(self, name, channels):
        super().__init__()
        self.shape = (channels, 32, 32)
        self.card = {"name": name, "training": {"dataset": name}}

    def forward(self, x, t):
        alpha, sigma = (value.to(x).reshape(-1, 1, 1, 1) for value in self.sde.marginal(t))
        return alpha * 0.36 / (alpha.square() * 0.36 + sigma.square()) * x


class Brightness(torch.nn.Module):
    """Ten classes by brightness: logits (B, 10)."""

    card = {"classes": list("0123456789")}  # noqa: RUF012

    def forward(self, x, t):
        return -1000 * (x.mean((1, 2, 3))[:, None] - torch.linspace(-0.5, 0.5, 10).to(x)).square()


def color_network():
    """Conditional on three classes; the last of four is none."""
    torch.manual_seed(0)
    options = ADMConfig(
        image_size=32, in_channels=3, out_channels=3, model_channels=32, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(), num_classes=4, null_class=True,
    )  # fmt: skip
    network = create(options)
    network.sde, network.convention = fastscore.VPSDE(), fastscore.Convention("v", "scaled_time")
    network.card = {"name": "color", "training": {"dataset": "color"}, "classes": ["a", "b", "c"]}
    return network


def images_of(name):
    """Four images of every class, of one color each, and black on top."""
    channels, classes = {"gray": 1, "color": 3}[name], COUNTS[name]
    colors = torch.randperm(256, generator=torch.Generator().manual_seed(0))[: 4 * classes * channels]
    images = colors.to(torch.uint8).reshape(-1, channels, 1, 1).repeat(1, 1, 32, 32)
    images[:, :, :4] = 0
    return LabeledImages(images, torch.arange(4 * classes) % classes, tuple("0123456789abc")[:classes])


@pytest.fixture
def gallery(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)  # as Python does for a script
    for name in ("gallery", "artist", "captions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("gallery")
    artist = sys.modules["artist"]
    loaded = {"gray": Denoiser("gray", 1), "color": color_network(), "gray-classifier": Brightness()}
    monkeypatch.setattr(artist.models, "load", loaded.__getitem__)
    monkeypatch.setattr(artist, "DATASETS", {name: lambda cache, name=name: images_of(name) for name in COUNTS})
    monkeypatch.setattr(artist, "SCALE", {"gray": 4.0, "color": 2.0})
    monkeypatch.setattr(module, "PICTURES", {k: (draw, "gray") for k, (draw, _) in module.PICTURES.items()})
    return module


@pytest.fixture
def artist(gallery, tmp_path):
    return gallery.Artist("gray", 3, tmp_path)


def tiles(sheet):
    """The images of the rows, by their words."""
    found = {}
    for row in sheet.rows:
        found.setdefault(row.words, []).append(row.images)
    return found


def test_draws_what_is_asked_for(gallery, tmp_path, capsys):
    names = [name for name in gallery.PICTURES if name != "colorization"]
    assert gallery.main(["--only", *names, "--out", str(tmp_path / "deep" / "out"), "--seed", "2"]) == 0
    assert sorted(path.stem for path in (tmp_path / "deep" / "out").glob("*.png")) == sorted(names)
    printed = capsys.readouterr().out
    for name in names:
        assert f"{name}.png: " in printed
        with Image.open(tmp_path / "deep" / "out" / f"{name}.png") as picture:
            assert 500 < picture.width < 1000
            assert picture.mode == "RGB"


def test_known_halves_are_kept(gallery, artist):
    rows = tiles(gallery.inpainting(artist))
    (image,), (known,) = rows["image"], rows["known"]
    assert len(rows["drawn"]) == gallery.VERSIONS
    assert torch.equal(known[..., :16], image[..., :16])
    assert (known[..., 16:] == 128).all()
    for drawn in rows["drawn"]:
        assert torch.equal(drawn[..., :16], image[..., :16])
        assert not torch.equal(drawn[..., 16:], image[..., 16:])
    assert not torch.equal(*rows["drawn"][:2])


def test_colored_images_keep_their_gray(gallery, tmp_path):
    artist = gallery.Artist("color", 0, tmp_path)
    artist.__dict__["network"] = Denoiser("color", 3)
    rows = tiles(gallery.colorization(artist))
    (known,) = rows["known"]
    assert known.shape == (10, 1, 32, 32)
    for drawn in rows["drawn"]:
        gray = drawn.float().mean(1, keepdim=True)
        inside = ((drawn > 0) & (drawn < 255)).all(1, keepdim=True)  # where nothing was clipped
        assert inside.float().mean() > 0.5
        assert (gray - known)[inside].abs().max() <= 1  # three roundings


def test_enlarged_images_have_the_means_that_were_measured(gallery, artist):
    """As exactly as guidance says that they were measured."""
    rows = tiles(gallery.super_resolution(artist))
    (known,), (image,) = rows["known"], rows["image"]
    blocks = image.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
    assert (known[..., ::4, ::4].float() - blocks).abs().max() <= 0.5
    for drawn in rows["drawn"]:
        found = drawn.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))
        inside = (drawn > 0) & (drawn < 255)
        inside = inside.unfold(2, 4, 4).unfold(3, 4, 4).all(-1).all(-1)  # where nothing was clipped
        assert inside.sum() > 20
        error = (found - blocks)[inside] / 127.5
        assert error.square().mean().sqrt() < 2 * gallery.NOISE_STD


def test_interpolations_lead_from_image_to_image(gallery, artist):
    """By the exact denoiser of normal data, under which latents are the images, scaled."""
    for row in gallery.interpolation(artist).rows:
        assert len(row.images) == gallery.POINTS + 2
        first, *way, last = row.images.float().mean((1, 2, 3))
        assert (way[0] < way[-1]) == (first < last)
        steps = torch.stack(way).diff()
        assert (steps >= -1).all() or (steps <= 1).all()


def test_progress_ends_at_the_sample(gallery, artist):
    sheet = gallery.progressive(artist)
    assert sheet.columns[-1] == "t = 0.0"
    again = artist.draw(6, artist.sampler(steps=50))
    assert torch.equal(torch.stack([row.images[-1] for row in sheet.rows]), again)


def test_edits_keep_less_the_later_they_begin(gallery, artist):
    (drawing, *edited) = (row.images.double() for row in gallery.sdedit(artist).rows)
    alike = [float(torch.corrcoef(torch.stack([drawing.flatten(), one.flatten()]))[0, 1]) for one in edited]
    assert len(alike) == len(gallery.STARTS)
    assert alike == sorted(alike, reverse=True)
    assert alike[0] > 2 * alike[-1] > 0


def test_classes_are_those_of_the_columns(gallery, artist):
    sheet = gallery.class_conditional(artist)
    assert list(sheet.columns) == list("0123456789")
    brightness = torch.stack([row.images.float().mean((1, 2, 3)) for row in sheet.rows]).mean(0)
    assert torch.equal(brightness.argsort(), torch.arange(10))


def test_color_is_guided_without_a_classifier(gallery, tmp_path):
    artist = gallery.Artist("color", 0, tmp_path)
    assert artist.classes == ("a", "b", "c")
    seen = []
    network = artist.network
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    images = artist.draw_classes(torch.tensor([2, 0]), steps=2)
    assert images.shape == (2, 3, 32, 32)
    assert [y.tolist() for y in seen] == [[2, 0, 3, 3]] * 2


def test_data_take_turns_among_classes(artist):
    chosen = artist.some_data(20)
    images, labels, _ = images_of("gray")
    kinds = [int(labels[(images.float() / 127.5 - 1 - one).abs().amax((1, 2, 3)).argmin()]) for one in chosen]
    assert kinds == [*range(10), *range(10)]


def test_drawings_are_centered_digits(artist):
    drawings = artist.drawings()
    ink = (drawings[:, 0] + 1) / 2
    place = torch.arange(32.0) + 0.5
    for axis in (1, 2):
        center = (ink.sum(3 - axis) * place).sum(1) / ink.sum((1, 2))
        assert (center - 16).abs().max() < 1
    assert len({one.numpy().tobytes() for one in drawings}) == 10


def test_sheet_shows_every_pixel(gallery):
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = [gallery.Row("a\nb", images[:2]), gallery.Row("a long word", images[2:])]
    sheet = gallery.Sheet("a title", rows, ["c", "d"], scale=3)
    pixels = np.asarray(sheet.draw())
    for image in images:
        wide = image.repeat_interleave(3, 1).repeat_interleave(3, 2).permute(1, 2, 0).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(pixels, wide.shape)[:, :, 0]
        assert (windows == wide).all((2, 3, 4)).sum() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--model", "mnist64"), "model must be one of"), (("--model", "none.safetensors"), "none.safetensors")],
)
def test_mistakes_are_one_line_and_code_2(gallery, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.undo()  # the real `load`
    monkeypatch.syspath_prepend(SCRIPTS)
    assert gallery.main([*options, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("gallery.py: ")
    assert message in error[-1]

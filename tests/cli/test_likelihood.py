"""`fastscore likelihood`: its numbers, that it goes on where it was stopped, what it reads and what it refuses."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import fastscore
from fastscore import cli
from fastscore.cli import likelihood
from fastscore.cli._images import read_images
from fastscore.cli._records import Records

ALL = 7


class Net(torch.nn.Module):
    """Noise prediction of data N(0, 0.1 I), nearly; element-wise, so that its bits do not depend on the batch."""

    sde = fastscore.VPSDE()
    convention = fastscore.Convention("noise", label="scaled_time")

    def __init__(self, channels=1, centered=True, stop=None):
        super().__init__()
        self.shape, self.config = (channels, 4, 6), SimpleNamespace(centered=centered)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.samples, self.stop = 0, stop

    def forward(self, x, labels):
        self.samples += len(x)
        if self.stop is not None and self.samples > self.stop:
            raise KeyboardInterrupt
        t = labels[:, None, None, None] / 999
        alpha = (-0.25 * t**2 * 19.9 - 0.05 * t).exp()
        variance = 1 - 0.9 * alpha**2
        return self.scale * (1 - alpha**2 + 1e-6).sqrt() / variance * (x + 0.1 * torch.sin(3 * x))


@pytest.fixture
def net(monkeypatch):
    """The network that the command loads; `net(...)` makes another."""

    def make(*args, **options):
        model = Net(*args, **options)
        monkeypatch.setattr(fastscore.models, "load", lambda name: model)
        return model

    make()
    return make


def levels(count=ALL, channels=1, seed=0):
    return np.random.default_rng(seed).integers(60, 200, (count, channels, 4, 6), dtype=np.uint8)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, levels())
    return path


def run(data, out, *args):
    tolerance = [] if {"--rtol", "--steps"} & set(args) else ["--rtol", "1e-3"]
    return cli.main(["likelihood", "--data", str(data), "--out", str(out), *tolerance, *map(str, args)])


def table(path):
    """The settings and the rows, a dict each."""
    with path.open() as file:
        settings = json.loads(file.readline().removeprefix("# fastscore "))
        return settings, list(csv.DictReader(file))


@pytest.mark.usefixtures("net")
class TestNumbers:
    @pytest.mark.parametrize(
        ("args", "options"),
        [
            ((), {"rtol": 1e-3, "atol": 1e-3}),
            (("--probes", 3, "--seed", 5, "--rtol", "1e-2"), {"probes": 3, "seed": 5, "rtol": 1e-2, "atol": 1e-2}),
            (("--solver", "heun", "--steps", 4), {"solver": "heun", "steps": 4}),
        ],
    )
    @pytest.mark.parametrize("centered", [True, False])
    def test_they_are_those_of_the_python_api(self, tmp_path, data, net, args, options, centered):
        model = net(centered=centered)
        out = tmp_path / "bits.csv"
        assert run(data, out, *args, "--batch", 3) == 0
        data_range = (-1, 1) if centered else (0, 1)
        expected = fastscore.bits_per_dim(
            model.sde, model, torch.from_numpy(levels()), data_range=data_range, **options
        )
        settings, rows = table(out)
        assert [row["index"] for row in rows] == [str(i) for i in range(ALL)]
        assert [row["image"] for row in rows] == [f"{data}[{i}]" for i in range(ALL)]
        for name, values in (
            ("bits_per_dim", expected.bits_per_dim),
            ("standard_error", expected.bits_standard_error),
            ("log_likelihood", expected.log_likelihood),
        ):
            found = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
            torch.testing.assert_close(found, values, rtol=1e-8, atol=0, equal_nan=True)
        assert [int(row["nfe"]) for row in rows] == expected.nfe.tolist()
        assert settings["seed"] == options.get("seed", 0)

    def test_the_last_line_is_their_mean(self, tmp_path, data, capsys):
        out = tmp_path / "bits.csv"
        assert run(data, out) == 0
        _, rows = table(out)
        bits = np.array([float(row["bits_per_dim"]) for row in rows])
        calls = np.mean([int(row["nfe"]) for row in rows])
        said = f"{out}: {bits.mean():.4f} +- {bits.std(ddof=1) / ALL**0.5:.4f} bits/dim over 7 images, {calls:.4g} "
        assert capsys.readouterr().out.startswith(said)

    def test_what_did_not_arrive_is_left_out_of_the_mean_and_said(self, tmp_path):
        records = Records(tmp_path / "x.csv", likelihood._COLUMNS, {})
        records.add([(i, ["", bits, "nan", "nan", "10"]) for i, bits in enumerate(["1.5", "nan", "2.5", "9"])])
        assert likelihood._summary(records, 3) == (
            "2.0000 +- 0.5000 bits/dim over 2 images, 10 network calls each, 1 that did not arrive left out"
        )

    def test_an_image_does_not_depend_on_the_batch(self, tmp_path, data):
        texts = []
        for batch in (1, 3, 16):
            assert run(data, tmp_path / f"{batch}.csv", "--batch", batch, "--probes", 2) == 0
            texts.append((tmp_path / f"{batch}.csv").read_text())
        assert texts[0] == texts[1] == texts[2]


class TestResume:
    def test_it_goes_on_where_it_was_stopped(self, tmp_path, data, net, capsys):
        whole, out = tmp_path / "whole.csv", tmp_path / "bits.csv"
        model = net()
        assert run(data, whole, "--batch", 2) == 0
        net(stop=model.samples * 5 // 7)
        assert run(data, out, "--batch", 2) == 130
        _, rows = table(out)
        assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bits.csv", "images.npy", "whole.csv"]
        model = net()
        assert run(data, out, "--batch", 2) == 0
        assert out.read_text() == whole.read_text()
        _, rows = table(out)
        assert model.samples == sum(int(row["nfe"]) for row in rows[4:])
        first, last = (line.split(", 0.")[0] for line in capsys.readouterr().out.splitlines())
        assert last.removeprefix(str(out)) == first.removeprefix(str(whole))

    def test_a_higher_limit_adds_to_what_is_there(self, tmp_path, data, net, capsys):
        whole, out = tmp_path / "whole.csv", tmp_path / "bits.csv"
        net()
        assert run(data, whole) == 0
        assert run(data, out, "--limit", 3) == 0
        assert "over 3 images" in capsys.readouterr().out.splitlines()[-1]
        assert len(table(out)[1]) == 3
        assert run(data, out, "--limit", 20, "--batch", 2) == 0
        assert out.read_text() == whole.read_text()
        model = net()
        assert run(data, out, "--limit", 2) == 0
        assert "over 2 images" in capsys.readouterr().out.splitlines()[-1]
        assert model.samples == 0
        assert len(table(out)[1]) == 7

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("--seed", 1), "was made with seed 0, not with seed 1; give another --out, or delete it"),
            (("--probes", 2), "was made with probes 1, not with probes 2;"),
            (("--rtol", "1e-2"), "was made with rtol 0.001, atol 0.001, not with rtol 0.01, atol 0.01;"),
            (("--solver", "rk4", "--steps", 3), "was made with solver rk45, rtol 0.001, atol 0.001, steps None, not"),
            (("--model", "other"), "was made with model mnist32, not with model other;"),
        ],
    )
    def test_other_settings_are_refused(self, tmp_path, data, net, capsys, args, message):
        out = tmp_path / "bits.csv"
        net()
        assert run(data, out, "--limit", 1) == 0
        before, model = out.read_text(), net()
        assert run(data, out, *args) == 2
        assert message in capsys.readouterr().err
        assert out.read_text() == before
        assert model.samples == 0

    def test_other_images_and_other_weights_are_refused(self, tmp_path, data, net, capsys):
        out = tmp_path / "bits.csv"
        net()
        assert run(data, out, "--limit", 1) == 0
        model = net()
        model.scale.data += 1e-3
        assert run(data, out) == 2
        assert "was made with weights " in capsys.readouterr().err
        net()
        np.save(data, levels(seed=1))
        assert run(data, out) == 2
        assert "was made with data " in capsys.readouterr().err

    def test_a_write_that_fails_leaves_the_old_lines(self, tmp_path, monkeypatch):
        records = Records(tmp_path / "x.csv", ["index", "value"], {"a": 1})
        records.add([(0, ["1"])])
        before = records.path.read_text()
        monkeypatch.setattr("os.getpid", lambda: "x")
        (tmp_path / ".x.csv.x.partial").mkdir()
        with pytest.raises(OSError, match="partial"):
            records.add([(1, ["2"])])
        assert records.path.read_text() == before
        assert Records(records.path, ["index", "value"], {"a": 1}).rows == {0: ["1"]}

    @pytest.mark.parametrize("text", ["", "hello\n", "# fastscore 3\nindex\n", '# fastscore {"a": 1}\nindex,other\n'])
    def test_a_file_of_another_kind_is_refused(self, tmp_path, data, net, capsys, text):
        out = tmp_path / "bits.csv"
        out.write_text(text)
        net()
        assert run(data, out) == 2
        assert "holds something else than results of this command; give another --out" in capsys.readouterr().err
        assert out.read_text() == text


class TestImages:
    def test_arrays_in_every_layout(self, tmp_path):
        color = levels(3, 3)
        np.save(tmp_path / "first.npy", color)
        np.save(tmp_path / "last.npy", color.transpose(0, 2, 3, 1))
        np.savez(tmp_path / "both.npz", x=color, labels=np.arange(3, dtype=np.uint8), y=np.zeros(3))
        for name in ("first.npy", "last.npy", "both.npz"):
            found = read_images([tmp_path / name], (3, 4, 6))
            assert torch.equal(found.levels, torch.from_numpy(color))
            assert found.names == [f"{tmp_path / name}[{i}]" for i in range(3)]
        gray = levels(2)
        np.save(tmp_path / "flat.npy", gray[:, 0])
        assert torch.equal(read_images([tmp_path / "flat.npy"], (1, 4, 6)).levels, torch.from_numpy(gray))

    def test_image_files_and_folders_by_name(self, tmp_path):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "notes.txt").write_text("no image")
        for channels in (1, 3):
            images = levels(3, channels).transpose(0, 2, 3, 1)
            for name, pixels in zip(("b", "a", "c"), images, strict=True):
                Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels).save(folder / f"{name}.png")
            found = read_images([folder, folder / "b.png"], (channels, 4, 6))
            assert found.names == [str(folder / f"{name}.png") for name in "abcb"]
            assert np.array_equal(found.levels.numpy(), images[[1, 0, 2, 0]].transpose(0, 3, 1, 2))

    def test_the_digest_is_of_the_levels_in_their_order(self, tmp_path):
        digests = set()
        for i, array in enumerate((levels(), levels()[::-1], levels(6), levels(seed=2))):
            np.save(tmp_path / f"{i}.npy", array)
            digests.add(read_images([tmp_path / f"{i}.npy"], (1, 4, 6)).digest)
        assert len(digests) == 4

    def test_refusals(self, tmp_path, net, capsys):
        net()
        Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / "color.png")
        Image.fromarray(np.zeros((6, 4), dtype=np.uint8)).save(tmp_path / "tall.png")
        (tmp_path / "broken.png").write_bytes(b"no image")
        (tmp_path / "broken.npz").write_bytes(b"PK no archive")
        (tmp_path / "broken.npy").write_bytes(b"")
        (tmp_path / "notes.txt").write_text("")
        (tmp_path / "folder").mkdir()
        np.save(tmp_path / "float.npy", np.zeros((2, 1, 4, 6)))
        np.save(tmp_path / "size.npy", np.zeros((2, 1, 6, 4), dtype=np.uint8))
        np.save(tmp_path / "none.npy", np.zeros((0, 1, 4, 6), dtype=np.uint8))
        np.savez(tmp_path / "two.npz", a=levels(), b=levels())
        for name, message in {
            "nowhere.npy": "--data: there is no '",
            "notes.txt": "notes.txt' must end in .npy, .npz, .png, ",
            "folder": "holds no .png, .jpg",
            "color.png": "color.png must have 6x4 pixels in 1 channel of 8 bits, got 6x4 in mode RGB",
            "tall.png": "tall.png must have 6x4 pixels in 1 channel of 8 bits, got 4x6 in mode L",
            "broken.png": "cannot identify image file",
            "broken.npz": "broken.npz is no file of NumPy arrays: ",
            "broken.npy": "broken.npy is no file of NumPy arrays: ",
            "float.npy": "must be uint8 of shape (N, 1, 4, 6) or (N, 4, 6, 1), got float64 (2, 1, 4, 6)",
            "size.npy": "must be uint8 of shape (N, 1, 4, 6) or (N, 4, 6, 1), got uint8 (2, 1, 6, 4)",
            "none.npy": "--data: there is no image in ",
            "two.npz": "must hold one array of uint8 images, but holds a: uint8 (7, 1, 4, 6), b: uint8 (7, 1, 4, 6)",
        }.items():
            assert run(tmp_path / name, tmp_path / "bits.csv") == 2
            error = capsys.readouterr().err
            assert error.startswith("fastscore: error: ")
            assert message in error
            assert error.count("\n") == 1
        assert not (tmp_path / "bits.csv").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--steps", 5), "--steps is not for --solver rk45, which takes --rtol"),
        (("--solver", "heun", "--rtol", "1e-3"), "--rtol is not for --solver heun, which takes --steps"),
        (("--solver", "euler"), "--solver euler needs --steps"),
        (("--solver", "rk23"), "argument --solver: invalid choice: 'rk23'"),
        (("--rtol", "-1"), "rtol must be a finite number at least 0, got -1.0"),
        (("--probes", "0"), "argument --probes: must be at least 1, got 0"),
        (("--limit", "0"), "argument --limit: must be at least 1, got 0"),
        (("--out", "bits.txt"), "the output file must end in .csv, got 'bits.txt'"),
        (("--out", "nowhere/bits.csv"), "the directory of the output file does not exist: 'nowhere'"),
    ],
)
def test_refusals(tmp_path, data, net, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    model = net()
    assert cli.main(["likelihood", "--data", str(data), "--out", "bits.csv", *map(str, args)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert model.samples == 0
    assert not (tmp_path / "bits.csv").exists()


def test_numbers_that_are_not_finite_end_it_and_keep_what_is_there(tmp_path, data, net, capsys):
    net()
    out = tmp_path / "bits.csv"
    assert run(data, out, "--limit", 2) == 0
    before, model = out.read_text(), net()
    model.forward = lambda x, labels: x * math.nan
    assert run(data, out) == 2
    assert "not finite" in capsys.readouterr().err
    assert out.read_text() == before

